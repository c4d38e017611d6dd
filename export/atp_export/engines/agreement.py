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
from atp_runtime.manifest import Manifest

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
#
# INT8: sums of INT8 products are exact on both sides, but what is rounded to INT8 was computed in
# FP16 before and differs by r, relative to the values' root mean square. Where the middle between
# two steps of width s lies in that difference, the sides are a whole step apart: that is one in
# s / (0.8 r) elements, so that r becomes an error of sqrt(0.8 r s). Over layers it grows until the
# sides are as far apart as two independent roundings: sqrt(2) times what INT8 itself costs. Among
# 1024 inputs, two of them ten times larger, s is 0.25, and r = 1e-3 becomes 1.1e-2 in one product
# and 9e-2 at most. The bound is an error vector of length 0.1: a cosine of 1 - 5e-3, a mean error
# of 8e-2, and half of it for the norm, since a score of a single token is a tensor of one number.
# Native and portable graphs of tiny INT8 models are 1.5e-4, 2.2e-2 and 2.2e-2 apart at most. INT8
# that costs more than an error of 0.07 fails here though its engine is right: min-max INT8 of the
# demo checkpoint, on random inputs, is 0.1 to 0.3 in cosine from FP16 and its dialects 7.6e-2.
BOUNDS: Mapping[str, Bound] = {
    "fp32": Bound(1 - 2e-9, 2e-4, 1e-4),
    "fp16": Bound(1 - 1e-4, 4e-3, 1.2e-2),
    "int8": Bound(1 - 5e-3, 5e-2, 8e-2),
}


def bound_of(manifest: Manifest) -> Bound:
    """What engines of a bundle may differ by.

    Only activations that are rounded to INT8 widen it: INT4 weights are the same numbers on both
    sides, and computed with in the bundle's precision.
    """
    quantised = manifest.quantisation
    if quantised is not None and quantised.activations == "int8":
        return BOUNDS["int8"]
    return BOUNDS[manifest.precision]


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
