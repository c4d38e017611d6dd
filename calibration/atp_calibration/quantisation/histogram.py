"""A histogram of magnitudes that grows with what it is given and merges with others.

Its limit is a power of two. When a larger magnitude comes, neighbouring bins are added until it
fits, so nothing has to be known beforehand, and histograms of parts of the data add up to exactly
that of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BINS = 2048
_SMALLEST = -40  # a limit of 2^-40 for zeros alone


def _no_counts() -> npt.NDArray[np.float64]:
    return np.zeros(BINS)


@dataclass
class Histogram:
    """How often which magnitudes came.

    Attributes:
        exponent: The limit is 2 to its power.
        counts: float64 [BINS], weighted, of equal bins from 0 to the limit.
    """

    exponent: int = _SMALLEST
    counts: npt.NDArray[np.float64] = field(default_factory=_no_counts)

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> Histogram:
        """Of all these values, with weight 1."""
        histogram = cls()
        histogram.add(values)
        return histogram

    @property
    def limit(self) -> float:
        """Above all magnitudes."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """Of the bins: float64 [BINS]."""
        centres: npt.NDArray[np.float64] = (np.arange(BINS, dtype=np.float64) + 0.5) * (
            self.limit / BINS
        )
        return centres

    def add(self, values: npt.NDArray[np.floating], weight: float = 1.0) -> None:
        """Counts values, whatever their shape.

        Args:
            values: Finite.
            weight: What each of them counts.
        """
        if values.size == 0:
            return
        magnitudes = np.abs(values).astype(np.float32).ravel()
        self._reach(float(magnitudes.max()))
        bins = np.minimum((magnitudes * (BINS / self.limit)).astype(np.int64), BINS - 1)
        self.counts += weight * np.bincount(bins, minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Adds what another one has counted."""
        widened = Histogram(other.exponent, other.counts.copy())
        widened._grow(self.exponent)
        self._grow(widened.exponent)
        self.counts += widened.counts

    def quantile(self, share: float) -> float:
        """The magnitude that this share of what was counted stays below; 0 if nothing was."""
        total = float(self.counts.sum())
        if total == 0:
            return 0.0
        bin_ = int(np.searchsorted(np.cumsum(self.counts), share * total))
        return (min(bin_, BINS - 1) + 1) * self.limit / BINS

    def _reach(self, largest: float) -> None:
        if largest >= self.limit:
            self._grow(math.frexp(largest)[1])

    def _grow(self, exponent: int) -> None:
        for _ in range(max(0, min(exponent - self.exponent, BINS.bit_length()))):
            halves = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([halves, np.zeros(BINS // 2)])
        self.exponent = max(self.exponent, exponent)
