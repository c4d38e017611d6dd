"""How far two tensors are apart: cosine and norm ratio, for cosine alone misses a lost scale.

Both are taken over rows (tokens) that were scaled to count alike. Real decoders have a few
tokens whose hidden states are hundreds of times larger than all others; without that scaling
those few would decide, and the others could be wrong unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_export.likeness import cosine_and_ratio

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tolerance:
    """What still passes.

    Attributes:
        cosine: Lowest cosine.
        norm_ratio: Largest distance of the norm ratio from 1.
        max_abs_error: Largest difference of two elements, for an expected tensor whose root
            mean square is at most 1; scaled with it above. None is no bound.
    """

    cosine: float
    norm_ratio: float
    max_abs_error: float | None = None


@dataclass(frozen=True)
class Measure:
    """One comparison of two tensors.

    Attributes:
        tensor: Its name in the graph, or what it is.
        when: "prefill", "decode" (all steps together) or another moment.
        cosine: Between the tensors' rows, see the module; None if it is not a number.
        norm_ratio: Of the found to the expected rows; None if it is not a number.
        max_abs_error: Unscaled; None if it is not a number, or nothing can be compared.
        passed: Whether all three are within the tolerance.
    """

    tensor: str
    when: str
    cosine: float | None
    norm_ratio: float | None
    max_abs_error: float | None
    passed: bool


def as_rows(array: Array) -> Rows:
    """A tensor [1, tokens, ...] as [tokens, width]; a vector [width] or [1, width] as one row."""
    wide = np.asarray(array, dtype=np.float64)
    if wide.ndim <= 2:
        return wide.reshape(1, -1)
    return wide.reshape(wide.shape[0] * wide.shape[1], -1)


def in_sequence(steps: Sequence[Array]) -> Array:
    """What several runs gave as one tensor: [1, tokens, ...] joined, [1, width] as tokens.

    Of one token alone the norm is a small sample; together, steps tell rounding from a scale.
    One run's tensor comes back as it is.
    """
    if len(steps) == 1:
        return steps[0]
    return np.concatenate([a[:, np.newaxis] if a.ndim == 2 else a for a in steps], axis=1)


def compare(
    tensor: str,
    when: str,
    found: Array,
    expected: Array,
    tolerance: Tolerance,
    *,
    scale: Array | None = None,
) -> Measure:
    """Compares two tensors of the same shape, in float64; what is empty fails.

    Args:
        tensor: Name for the report.
        when: Moment for the report.
        found: What the bundle computed.
        expected: What the reference computed.
        tolerance: What passes. NaN and infinite values never do, wherever they stand.
        scale: A tensor whose rows' norms scale the rows; None is `expected` itself.
    """
    if found.shape != expected.shape or found.size == 0:
        return Measure(tensor, when, None, None, None, passed=False)
    a, b = as_rows(found), as_rows(expected)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Measure(tensor, when, None, None, None, passed=False)
    error = float(np.abs(a - b).max())
    weights = _row_weights(b if scale is None else as_rows(scale))
    cosine, ratio = cosine_and_ratio(a * weights, b * weights)
    bound = tolerance.max_abs_error
    close = bound is None or error <= bound * max(1.0, _root_mean_square(b))
    passed = (
        close
        and cosine >= tolerance.cosine
        and ratio is not None
        and abs(ratio - 1) <= tolerance.norm_ratio
    )
    return Measure(tensor, when, cosine, ratio, error, passed)


def _row_weights(rows: Rows) -> Rows:
    """1 / norm of each row [rows, 1]; a row of zeros gets the mean norm, or 1."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    typical = norms.mean() if norms.any() else 1.0
    return 1 / np.where(norms > 0, norms, typical)


def _root_mean_square(rows: Rows) -> float:
    return float(np.sqrt(np.square(rows).mean()))
