"""Cosine and ratio of norms of two arrays: alone each misses what the other sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def cosine_and_ratio(a: Float64, b: Float64) -> tuple[float, float | None]:
    """Of `a` to `b`, of the same shape.

    Two arrays of zeros are equal; one of zeros is no likeness of another, and has a ratio only
    where it is the first.
    """
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if norm_a == norm_b == 0:
        return 1.0, 1.0
    if norm_a == 0 or norm_b == 0:
        return 0.0, norm_a / norm_b if norm_b else None
    # 1 - cosine from the distance of the unit vectors: it is too small for its own digits.
    return 1 - float(np.square(a / norm_a - b / norm_b).sum()) / 2, norm_a / norm_b
