"""How far an engine's outputs are from ONNX Runtime's: arithmetic on two sets of named arrays.

Cosine alone misses a lost scale and the norm alone a wrong direction; both miss an error that
sits in a few elements, which the mean error sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_export.likeness import cosine_and_ratio

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bound:
    """What still passes.

    Attributes:
        cosine: Lowest cosine of the two tensors.
        norm_ratio: Largest distance of the ratio of their norms from 1.
        mean_error: Largest mean absolute error, over the root mean square of the expected.
    """

    cosine: float
    norm_ratio: float
    mean_error: float


# Parity (parity/tolerances.py) lets each side be that far from float32: 1 - cosine 5e-5, norm
# 2e-3 in FP16; 1e-9, 1e-4 in FP32. Engine and ONNX Runtime round independently, so that their
# differences add up to twice as much. An error vector of relative length e gives a cosine of
# 1 - e^2 / 2 and, if it is like noise, a mean error of 0.8 e: 1.1e-2 and 5e-5 here. A wrong
# layout, a stale buffer or a lost mask is off by 1e-1 or more. Not yet measured on a GPU; the
# native graphs of a tiny FP16 model are 2.5e-7, 2.2e-3 and 2.2e-3 from the portable ones in ONNX
# Runtime.
BOUNDS: Mapping[str, Bound] = {
    "fp32": Bound(1 - 2e-9, 2e-4, 1e-4),
    "fp16": Bound(1 - 1e-4, 4e-3, 1.2e-2),
}


@dataclass(frozen=True)
class TensorAgreement:
    """One output, compared.

    Attributes:
        tensor: Its name.
        cosine: None where there is none to be had: shapes differ, something is not finite or one
            side is all zeros.
        norm_ratio: Of the found to the expected; None likewise.
        mean_error: See `Bound`; None likewise.
        passed: Whether all three are within the bound.
    """

    tensor: str
    cosine: float | None
    norm_ratio: float | None
    mean_error: float | None
    passed: bool


def compare_outputs(
    found: Mapping[str, Array], expected: Mapping[str, Array], bound: Bound
) -> tuple[TensorAgreement, ...]:
    """Compares every expected tensor; one that is missing or empty fails.

    Args:
        found: What the engine gave, by name.
        expected: What ONNX Runtime gave, by name.
        bound: What passes.
    """
    return tuple(
        _compare(name, found.get(name, np.empty(0)), array, bound)
        for name, array in expected.items()
    )


def _compare(name: str, found: Array, expected: Array, bound: Bound) -> TensorAgreement:
    a, b = (np.asarray(array, dtype=np.float64).ravel() for array in (found, expected))
    if found.shape != expected.shape or a.size == 0 or not (np.isfinite([a, b]).all()):
        return TensorAgreement(name, None, None, None, passed=False)
    if not (a.any() and b.any()):
        return TensorAgreement(name, None, None, None, passed=bool(a.any() == b.any()))
    cosine, ratio = cosine_and_ratio(a, b)
    error = float(np.abs(a - b).mean() / np.sqrt(np.square(b).mean()))
    passed = (
        cosine >= bound.cosine
        and ratio is not None
        and abs(ratio - 1) <= bound.norm_ratio
        and error <= bound.mean_error
    )
    return TensorAgreement(name, cosine, ratio, error, passed)
