"""95 % intervals of mean scores, and of the difference between two runs on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Z = 1.959964  # of the normal distribution, 2.5 % on either side


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_score(scores: Sequence[float]) -> Estimate:
    """The mean of scores from 0 to 1: Wilson's interval if all are 0 or 1, else the normal one.

    Args:
        scores: At least one.
    """
    mean, count = fmean(scores), len(scores)
    if all(score in (0, 1) for score in scores):
        return _wilson(mean, count)
    half = _half_width(scores)
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0))


def mean_difference(differences: Sequence[float]) -> Estimate:
    """The mean of per-question differences (paired), with the normal interval.

    Args:
        differences: One per question, each from -1 to 1; at least one.
    """
    mean, half = fmean(differences), _half_width(differences)
    return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def _wilson(share: float, count: int) -> Estimate:
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    spread = math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    half = Z * spread / (1 + Z**2 / count)
    # Rounding must not put an end on the wrong side of the mean, or outside of 0 to 1.
    low, high = min(centre - half, share), max(centre + half, share)
    return Estimate(share, max(low, 0.0), min(high, 1.0))


def _half_width(values: Sequence[float]) -> float:
    """Infinite for a single value, which says nothing about the spread."""
    return Z * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
