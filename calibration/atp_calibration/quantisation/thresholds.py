"""From what was seen of an activation to the magnitude that the largest INT8 value stands for.

What lies above it is clipped; the smaller it is, the finer the steps of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from atp_calibration.quantisation.histogram import BINS, Histogram

METHODS = ("minmax", "percentile", "mse", "entropy")
LEVELS = 127
"""Positive values of symmetric INT8."""
_Cost = Callable[[Histogram, float], float]
_PERCENTILE = 0.9999
_SHARES = np.linspace(0.02, 1.0, 50)  # of the largest magnitude, tried one by one


def find_thresholds(histogram: Histogram, largest: float) -> Mapping[str, float]:
    """What each of `METHODS` says.

    Args:
        histogram: Of what was seen.
        largest: The largest magnitude, exactly.
    """
    if largest <= 0:
        return dict.fromkeys(METHODS, 0.0)
    return {
        "minmax": largest,
        "percentile": min(histogram.quantile(_PERCENTILE), largest),
        "mse": _least(histogram, largest, _squared_error),
        "entropy": _least(histogram, largest, _divergence),
    }


def _least(histogram: Histogram, largest: float, cost: _Cost) -> float:
    candidates = _SHARES * largest
    return float(candidates[int(np.argmin([cost(histogram, it) for it in candidates]))])


def _squared_error(histogram: Histogram, threshold: float) -> float:
    """Of rounding and clipping, summed over what was counted."""
    centres, step = histogram.centres, threshold / LEVELS
    back = np.minimum(np.rint(centres / step), LEVELS) * step
    return float(histogram.counts @ np.square(centres - back))


def _divergence(histogram: Histogram, threshold: float) -> float:
    """Kullback-Leibler divergence of what INT8 leaves from what was counted.

    As in NVIDIA's calibration (Migacz, "8-bit inference with TensorRT", GTC 2017): what is
    clipped is counted at the threshold, and a level's counts are spread evenly over its bins that
    were not empty.
    """
    bins = max(1, min(BINS, int(np.ceil(threshold / histogram.limit * BINS))))
    counted = histogram.counts[:bins]
    clipped = float(histogram.counts[bins:].sum())
    level = np.minimum(np.arange(bins) * (LEVELS + 1) // bins, LEVELS)
    filled = counted > 0
    sums = np.bincount(level, counted, LEVELS + 1)
    places = np.maximum(np.bincount(level, filled, LEVELS + 1), 1)
    left = np.where(filled, (sums / places)[level], 0.0)
    truth = counted.copy()
    truth[-1] += clipped
    return _kl(truth, left)


def _kl(truth: npt.NDArray[np.float64], left: npt.NDArray[np.float64]) -> float:
    total, kept = truth.sum(), left.sum()
    if total == 0 or kept == 0:
        return 0.0 if total == kept else np.inf
    p, q = truth / total, np.maximum(left / kept, 1e-12)
    seen = p > 0
    return float(p[seen] @ np.log(p[seen] / q[seen]))
