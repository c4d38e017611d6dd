"""Rules that keep the best tokens by a score: a number of them, a share, or by rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from atp_runtime import atp
from atp_runtime.blind_order import random_order, spread_order
from atp_runtime.density_peaks import density_peaks
from atp_runtime.merges import IndexArray, Shares, weighted_mean
from atp_runtime.rule import FixedRule, ImageScores, Verdict

SCORES = ("self", "cross", "mean", "random", "grid")
"""What `TopK` ranks by."""


@dataclass(frozen=True)
class TopK(FixedRule):
    """A fixed number or share of each image's tokens, the best by score.

    Attributes:
        keep: How many stay; one of this and the next two is given.
        ratio: Which share of those still alive stays, rounded to the nearest (a half up).
        redundant: Which share is dropped of those that are more than the rank of what the asked
            tokens pay them (SparseVLM, arXiv 2410.04417); without text behind the image, none.
        score: One of `SCORES`: "self", "cross", or "mean" of both, each scaled to 0..1; without
            text after the image, "self" stands in for these. "random" and "grid" look at none:
            any tokens, others for other images, or such as lie evenly on the image.
        name: The rule's.
    """

    name: ClassVar[str] = "top_k"

    keep: int | None = None
    ratio: float | None = None
    redundant: float | None = None
    score: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if [self.keep, self.ratio, self.redundant].count(None) != 2:
            raise ValueError("exactly one of keep, ratio and redundant must be given")
        if self.redundant is not None and not 0 <= self.redundant <= 1:
            raise ValueError(f"redundant is {self.redundant}, it must be from 0 to 1")
        if self.keep is not None and self.keep < 0:
            raise ValueError(f"keep is {self.keep}, it must be 0 or more")
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}, it must be from 0 to 1")
        if self.score not in SCORES:
            raise ValueError(f"score {self.score!r} is none of {', '.join(SCORES)}")

    @property
    def reads_rows(self) -> bool:
        """By rank it does."""
        return self.redundant is not None

    def decide(self, image: ImageScores) -> Verdict:
        """Keeps `keep`, or `ratio` of those alive, or what is not redundant."""
        tokens, measured = len(image.own), dict[str, float]()
        scores, note = self._scores(image)
        if self.keep is not None:
            count, asked = min(self.keep, tokens), f"keeps up to {self.keep}"
        elif self.ratio is not None:
            count, asked = _rounded(self.ratio * tokens), f"keeps {self.ratio:.4g} of them"
        else:
            rank = _rank(image)
            count = tokens - _rounded((self.redundant or 0.0) * (tokens - rank))
            asked, measured = f"finds no more than their rank, {rank}", {"rank": rank}
        idle = f"all {tokens} tokens stay: {self.name} {asked}"
        return Verdict(scores, count, idle=idle, note=note, measured=measured)

    def _scores(self, image: ImageScores) -> tuple[atp.Vector, str | None]:
        if self.score == "mean":
            return image.mean(), None
        if self.score == "random":
            return -random_order(image.own), None
        if self.score == "grid":
            return -spread_order(image.row, image.column), None
        if self.score == "cross" and image.has_text:
            return image.cross.astype(np.float64), None
        unmet = "no text follows the image, so its tokens are ranked by their self scores"
        return image.own.astype(np.float64), unmet if self.score == "cross" else None


def _rounded(number: float) -> int:
    """To the nearest, a half up."""
    return math.floor(number + 0.5)


def _rank(image: ImageScores) -> int:
    """Of the matrix of what the asked tokens pay the image's; all tokens where nobody is asked."""
    if not image.has_text:
        return len(image.own)
    if image.attention is None:
        raise ValueError("a rank is one of rows of attention, and there are none")
    return int(np.linalg.matrix_rank(image.attention()))


@dataclass(frozen=True)
class MergeRest(TopK):
    """The best tokens, and one made of all others (iLLaVA, arXiv 2412.06263).

    That one is their mean, weighted by the cross scores; without text after the image all weigh the
    same (reconstructed, see docs/policies.md).
    """

    merges = True
    name = "merge_rest"

    def decide(self, image: ImageScores) -> Verdict:
        """Keeps as `TopK` does, and one more."""
        verdict = super().decide(image)
        weights = image.cross.astype(np.float64) if image.has_text else np.ones(len(image.own))
        rest = int(verdict.count < len(weights))
        merge = partial(weighted_mean, weights)
        return replace(verdict, count=verdict.count + rest, merged=rest, merge=merge)


@dataclass(frozen=True)
class Recycle(TopK):
    """The best tokens, and what the best of the others become (SparseVLM, arXiv 2410.04417).

    These are clustered by their hidden states, and each cluster becomes the mean of its members
    (reconstructed: the paper's sum would leave the scale that layers are used to).

    Attributes:
        share: Of the tokens that do not stay; the best by score are recycled, the rest is dropped.
        members: One cluster for so many of them, but one at least; both are rounded, a half up.
        neighbours: See `density_peaks`.
    """

    merges = True
    name = "recycle"
    share: float = 0.3
    members: int = 10
    neighbours: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, it must be from 0 to 1")
        if self.members < 1 or self.neighbours < 1:
            raise ValueError("members and neighbours must be 1 or more")

    def decide(self, image: ImageScores) -> Verdict:
        """Keeps as `TopK` does, and as many more as there are clusters."""
        verdict = super().decide(image)
        recycled = self._recycled(len(image.own) - verdict.count)
        clusters = max(_rounded(recycled / self.members), min(recycled, 1))
        merge = partial(self._merge, image, verdict.priority)
        return replace(verdict, count=verdict.count + clusters, merged=clusters, merge=merge)

    def _recycled(self, tokens: int) -> int:
        return _rounded(self.share * tokens)

    def _merge(
        self, image: ImageScores, priority: atp.Vector, rest: IndexArray, clusters: int
    ) -> Shares:
        if image.hidden is None:
            raise ValueError(f"{self.name} clusters hidden states, and there are none")
        count = max(self._recycled(len(rest)), clusters)
        best = np.sort(rest[np.argsort(-priority[rest], kind="stable")[:count]])
        cluster = density_peaks(image.hidden()[best], clusters, self.neighbours)
        shares = np.zeros((clusters, len(priority)))
        shares[cluster, best] = 1 / np.bincount(cluster)[cluster]
        return shares
