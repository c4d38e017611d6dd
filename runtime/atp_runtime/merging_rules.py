"""Rules before the decoder whose tokens are averages of the tower's features.

They come before the projector: it is not linear, so averages must be taken first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atp_runtime.reduction import (
    NOWHERE,
    Given,
    Reduction,
    VisionRule,
    best,
    check_count,
    units,
)
from atp_runtime.tensor_names import CLASS_ATTENTION, KEYS, MEAN_KEYS

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Contextual(VisionRule):
    """Dominant tokens, and averages of the others (VisionZip, arXiv 2412.04467).

    The dominant ones are those that the class token attends to most. Of the rest, targets are
    taken at equal distances, each other token is added to the target whose key is most like its
    own (cosine), and each group is averaged.

    Attributes:
        dominant: How many stay as they are.
        contextual: How many averages follow them.
    """

    needs = (CLASS_ATTENTION, MEAN_KEYS)
    dominant: int
    contextual: int

    def __post_init__(self) -> None:
        check_count("dominant", self.dominant)
        check_count("contextual", self.contextual)

    def reduce(self, given: Given) -> Reduction:
        """The dominant tokens in their order, then the averages in that of their targets."""
        scores = given[CLASS_ATTENTION].astype(np.float64)
        dominant = best(scores, self.dominant)
        rest = np.setdiff1d(np.arange(len(scores)), dominant)
        groups = min(self.contextual, len(rest))
        place = np.concatenate([dominant, np.full(groups, NOWHERE)])
        mixing = np.zeros((len(place), len(scores)))
        mixing[np.arange(len(dominant)), dominant] = 1
        if groups:
            targets = np.arange(groups) * (len(rest) // groups)
            unit = units(given[MEAN_KEYS])[rest]
            group = np.argmax(unit @ unit[targets].T, axis=1)
            group[targets] = np.arange(groups)
            mixing[len(dominant) + group, rest] = 1 / np.bincount(group, minlength=groups)[group]
        return Reduction(place, mixing)

    def most(self, tokens: int) -> int:
        """Both."""
        return min(self.dominant + self.contextual, tokens)


@dataclass(frozen=True)
class Outliers(VisionRule):
    """Outliers of the class token's attention, each with its like (PruMerge, arXiv 2403.15388).

    What lies above the third quartile by 1.5 interquartile ranges stays, and further tokens at
    equal distances as PruMerge+ has it. Each becomes the average of itself and of the others whose
    keys are most like its own (cosine), weighted by the class token's attention.

    Attributes:
        neighbours: How many others.
        samples: Further tokens for each outlier; 0 for none.
    """

    needs = (CLASS_ATTENTION, KEYS)
    neighbours: int = 32
    samples: int = 0

    def __post_init__(self) -> None:
        if self.neighbours < 0 or self.samples < 0:
            raise ValueError("neighbours and samples must be 0 or more")

    def reduce(self, given: Given) -> Reduction:
        """As many as there are outliers, at least one, and samples; in their order."""
        scores = given[CLASS_ATTENTION].astype(np.float64)
        first, third = np.quantile(scores, [0.25, 0.75])
        place = np.flatnonzero(scores > third + 1.5 * (third - first))
        if not len(place):
            place = best(scores, 1)
        if self.samples:
            step = max(len(scores) // (self.samples * len(place)), 1)
            place = np.union1d(place, np.arange(0, len(scores), step))
        # Rounded to zero they would share nothing.
        shares = np.maximum(scores, _TINY)
        unit = units(given[KEYS])
        likeness = unit[place] @ unit.T
        # Itself comes first.
        likeness[np.arange(len(place)), place] = np.inf
        nearest = np.argsort(-likeness, axis=1, kind="stable")[:, : self.neighbours + 1]
        mixing = np.zeros((len(place), len(scores)))
        weights = shares[nearest] / shares[nearest].sum(axis=1, keepdims=True)
        np.put_along_axis(mixing, nearest, weights, axis=1)
        return Reduction(place, mixing)

    def most(self, tokens: int) -> int:
        """All that can lie above the third quartile; with samples, all there are."""
        return tokens if self.samples else max(-(-(tokens - 1) // 4), 1)
