"""What is remembered of the input of a linear layer: streaming, mergeable and of fixed size."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from atp_calibration.quantisation.histogram import Histogram

EXTREMES = 8
"""Tokens that are remembered for their magnitudes: single ones may hold all outliers."""
_MOST, _LEAST = 1024, 32
_MEMORY = 384 << 20  # bytes

Float32 = npt.NDArray[np.float32]


def capacity_for(channels: int) -> int:
    """How many tokens to remember of each input, so that all together stay below 384 MiB.

    Args:
        channels: Of all inputs together.
    """
    return max(_LEAST, min(_MOST, _MEMORY // (4 * max(channels, 1)) - EXTREMES))


@dataclass(frozen=True, eq=False)
class SeenTokens:
    """What a run of a stage shows of a layer's input.

    Attributes:
        count: How many tokens there were.
        largest: Magnitude per channel, over all tokens: float32 [in].
        mean: Of the magnitudes, per channel, over all tokens: float32 [in].
        rows: Some of the tokens, drawn evenly: float32 [drawn, in].
        extreme: The token with the largest magnitude: float32 [in].
    """

    count: int
    largest: Float32
    mean: Float32
    rows: Float32
    extreme: Float32


@dataclass
class LayerInput:
    """What was seen so far.

    Extremes are exact. The histogram counts the drawn tokens, each for those it stands for; the
    remembered ones are a sample of them with the same weights (Efraimidis and Spirakis, 2006).

    Attributes:
        channels: in, the width of the input.
        capacity: Tokens that are remembered at most.
        count: Tokens.
        largest: Magnitude per channel: float32 [in].
        total: Sum of the magnitudes per channel: float64 [in].
        histogram: Of the magnitudes.
        keys: Lots of the remembered tokens, the largest win: float64 [remembered].
        rows: Those tokens: float32 [remembered, in].
        extremes: The tokens with the largest magnitudes: float32 [up to EXTREMES, in].
    """

    channels: int
    capacity: int = _MOST
    count: int = 0
    largest: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    total: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    histogram: Histogram = field(default_factory=Histogram)
    keys: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    rows: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    extremes: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        if not self.largest.size:
            self.largest = np.zeros(self.channels, np.float32)
            self.total = np.zeros(self.channels)
            self.rows = np.zeros((0, self.channels), np.float32)
            self.extremes = np.zeros((0, self.channels), np.float32)

    @property
    def maximum(self) -> float:
        """The largest magnitude of all."""
        return float(self.largest.max(initial=0.0))

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Magnitude per channel, on average over all tokens: float64 [in]."""
        return self.total / max(self.count, 1)

    def add(self, seen: SeenTokens, generator: np.random.Generator) -> None:
        """Takes in a run.

        Args:
            seen: What it showed; finite.
            generator: Draws the lots.
        """
        self.count += seen.count
        self.largest = np.maximum(self.largest, seen.largest)
        self.total += seen.mean.astype(np.float64) * seen.count
        weight = seen.count / len(seen.rows)
        self.histogram.add(seen.rows, weight)
        lots = np.log(generator.random(len(seen.rows))) / weight
        self._remember(lots, seen.rows)
        self._remember_extremes(seen.extreme[None])

    def merge(self, other: LayerInput) -> None:
        """Takes in what was seen elsewhere."""
        self.count += other.count
        self.largest = np.maximum(self.largest, other.largest)
        self.total += other.total
        self.histogram.merge(other.histogram)
        self._remember(other.keys, other.rows)
        self._remember_extremes(other.extremes)

    def tokens(self) -> tuple[Float32, npt.NDArray[np.float64]]:
        """The remembered tokens, extremes included, and how many tokens each stands for.

        Returns:
            float32 [remembered, in] and float64 [remembered].
        """
        share = max(self.count / max(len(self.rows), 1), 1.0)
        weights = np.concatenate([np.full(len(self.rows), share), np.ones(len(self.extremes))])
        return np.concatenate([self.rows, self.extremes]), weights

    def _remember(self, keys: npt.NDArray[np.float64], rows: Float32) -> None:
        if not self.capacity:
            return
        keys, rows = np.concatenate([self.keys, keys]), np.concatenate([self.rows, rows])
        best = np.sort(np.argsort(-keys, kind="stable")[: self.capacity])
        self.keys, self.rows = keys[best], rows[best]

    def _remember_extremes(self, rows: Float32) -> None:
        if not self.capacity:
            return
        rows = np.concatenate([self.extremes, rows])
        best = np.argsort(-np.abs(rows).max(axis=1), kind="stable")[:EXTREMES]
        self.extremes = rows[best]
