"""Spearman's rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Correlation of the ranks, from -1 to 1; equal values share their mean rank.

    Args:
        left: n values.
        right: n values.

    Returns:
        None if either side is constant, or there are fewer than two values.
    """
    ranks = _ranks(left), _ranks(right)
    if len(left) < 2 or any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks
