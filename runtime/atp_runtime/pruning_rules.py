"""The selection rules, by the name that a bundle's manifest calls them.

A rule is the frozen dataclass of its parameters; `prepare` gives the pure function from one
image's scores to a `Verdict`: how much the rule wants each token, and how many of them; and what it
makes of the others, if it does not just drop them.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from atp_runtime import atp, registered
from atp_runtime.blind_order import random_order, spread_order
from atp_runtime.density_peaks import density_peaks
from atp_runtime.errors import InputError
from atp_runtime.merges import IndexArray, Shares, weighted_mean

SCORES = ("self", "cross", "mean", "random", "grid")
"""What `TopK` ranks by."""
_FIX = "export the bundle again with atp-export."


@dataclass(frozen=True)
class ImageScores:
    """What a rule sees of one image, n >= 1 visual tokens in the sequence's order.

    Attributes:
        own: `scores.self`, float32 [n].
        cross: `scores.cross`, float32 [n]; 0 when no text follows the image.
        has_text: Whether any text follows.
        row: int64 [n], the row of the patch, -1 without a place on the grid.
        column: int64 [n], likewise.
        hidden: Gives the hidden states [n, hidden] that leave the layer, which costs a download;
            None where scores are all there is.
    """

    own: npt.NDArray[np.float32]
    cross: npt.NDArray[np.float32]
    has_text: bool
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    hidden: Callable[[], npt.NDArray[np.float32]] | None = None

    def normalised(self, how: str = "min_max") -> tuple[atp.Vector, atp.Vector]:
        """Both scores [n], scaled; cross scores are 0 without text."""
        own = atp.normalise(self.own, how)
        return own, atp.normalise(self.cross, how) if self.has_text else np.zeros_like(own)

    def mean(self) -> atp.Vector:
        """S_red [n]."""
        own, cross = self.normalised()
        return atp.redundancy_scores(own, cross, has_text=self.has_text)


Merge = Callable[[IndexArray, int], Shares]
"""From the tokens that do not stay (int64, rising) and a number, at most theirs, that many tokens
made of them: float64 [number, n], the share of each token; no token is in two."""


@dataclass(frozen=True)
class Verdict:
    """What a rule wants for one image.

    Attributes:
        priority: float64 [n]; the tokens of highest priority stay.
        count: How many go on, before `min_keep` and `max_keep`.
        idle: What the user should hear when that is all of them.
        measured: What the rule computed on the way, by name.
        note: What the user should hear in any case.
        merged: How many of the `count` are made of the tokens that do not stay.
        merge: How; None of a rule that drops them.
    """

    priority: atp.Vector
    count: int
    idle: str
    measured: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None
    merged: int = 0
    merge: Merge | None = None


Decide = Callable[[ImageScores], Verdict]


@dataclass(frozen=True)
class Rule(abc.ABC):
    """Parameters that every rule has.

    Attributes:
        min_keep: At least so many tokens of an image stay, or all it has left.
        max_keep: At most so many do; None is no bound.
        merges: Whether it makes tokens of others; such count as staying.
    """

    merges: ClassVar[bool] = False

    min_keep: int = 0
    max_keep: int | None = None

    def __post_init__(self) -> None:
        if self.min_keep < 0:
            raise ValueError(f"min_keep is {self.min_keep}, it must be 0 or more")
        if self.max_keep is not None and self.max_keep < self.min_keep:
            raise ValueError(f"max_keep {self.max_keep} is below min_keep {self.min_keep}")

    @abc.abstractmethod
    def prepare(self, weights: Mapping[str, atp.AtpWeights], prefix: str | None, /) -> Decide:
        """The rule as a function, with its weights looked up.

        Args:
            weights: All the bundle's, by prefix.
            prefix: The point's own.

        Raises:
            InputError: The rule needs weights that are not there.
        """


class FixedRule(Rule):
    """A rule that learns nothing."""

    def prepare(self, _weights: Mapping[str, atp.AtpWeights], _prefix: str | None, /) -> Decide:
        """Needs no weights."""
        return self.decide

    @abc.abstractmethod
    def decide(self, image: ImageScores) -> Verdict:
        """What the rule wants for one image."""


@dataclass(frozen=True)
class Atp(Rule):
    """Learned thresholds with OR (ATP-LLaVA); see `atp_runtime.atp`.

    Attributes:
        redundancy: What S_red is made of, one of `atp.REDUNDANCIES`; "none" turns the
            redundancy criterion off.
        lambda_sample: How fast a denser sampling grid loses score.
        strides: The sampling grids, rising; none turns the spatial criterion off.
        normalisation: "min_max" or "none".
        redundancy_offset: Added to the argument of theta_r's sigmoid, to fit a budget: a higher
            threshold keeps fewer tokens.
        spatial_offset: Likewise of theta_s.
    """

    redundancy: str = "both"
    lambda_sample: float = 3.0
    strides: tuple[int, ...] = (2, 4, 8)
    normalisation: str = "min_max"
    redundancy_offset: float = 0.0
    spatial_offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda_sample", "redundancy_offset", "spatial_offset"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}, it must be finite")
        if any(a >= b for a, b in pairwise((0, *self.strides))):
            raise ValueError(f"strides {list(self.strides)} must be positive and rise")
        if self.redundancy not in atp.REDUNDANCIES:
            known = ", ".join(atp.REDUNDANCIES)
            raise ValueError(f"redundancy {self.redundancy!r} is none of {known}")
        if self.redundancy == "none" and not self.strides:
            raise ValueError("redundancy 'none' without strides leaves no criterion")
        if self.normalisation not in atp.NORMALISATIONS:
            known = ", ".join(atp.NORMALISATIONS)
            raise ValueError(f"normalisation {self.normalisation!r} is none of {known}")

    def prepare(self, weights: Mapping[str, atp.AtpWeights], prefix: str | None, /) -> Decide:
        """Looks up the point's module; see `Rule.prepare`."""
        if prefix is None or prefix not in weights:
            raise InputError(
                f"the atp rule has no weights at {prefix!r}",
                why=f"the bundle's ATP modules are {', '.join(weights) or 'none'}.",
                fix=_FIX,
            )
        module = self._shifted(weights[prefix])
        return lambda image: self._decide(image, module)

    def _shifted(self, module: atp.AtpWeights) -> atp.AtpWeights:
        weights, biases = module.heads
        offsets = np.array([self.redundancy_offset, self.spatial_offset])
        return replace(module, heads=(weights, biases + offsets))

    def _decide(self, image: ImageScores, module: atp.AtpWeights) -> Verdict:
        own, cross = image.normalised(self.normalisation)
        attention = float(image.cross.sum(dtype=np.float64)) if image.has_text else 0.0
        theta_r, theta_s = atp.thresholds(atp.score_features(own, cross, attention), module)
        margins = atp.margins(
            atp.redundancy_scores(own, cross, has_text=image.has_text, how=self.redundancy),
            atp.spatial_scores(
                image.row, image.column, lambda_sample=self.lambda_sample, strides=self.strides
            ),
            theta_r=theta_r,
            theta_s=theta_s,
        )
        return Verdict(
            margins,
            int(np.count_nonzero(margins > 0)),
            idle=f"all {len(margins)} tokens are above the thresholds",
            measured={"theta_r": theta_r, "theta_s": theta_s},
            note=self._unmet(image),
        )

    def _unmet(self, image: ImageScores) -> str | None:
        if self.redundancy != "cross" or image.has_text:
            return None
        return "no text follows the image, so its tokens are judged by their self scores"


@dataclass(frozen=True)
class TopK(FixedRule):
    """A fixed number or share of each image's tokens, the best by score.

    Attributes:
        keep: How many stay; either this or `ratio` is given.
        ratio: Which share of those still alive stays, rounded to the nearest (a half up).
        score: One of `SCORES`: "self", "cross", or "mean" of both, each scaled to 0..1; without
            text after the image, "self" stands in for these. "random" and "grid" look at none:
            any tokens, others for other images, or such as lie evenly on the image.
        name: The rule's.
    """

    name: ClassVar[str] = "top_k"

    keep: int | None = None
    ratio: float | None = None
    score: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep is None) == (self.ratio is None):
            raise ValueError("exactly one of keep and ratio must be given")
        if self.keep is not None and self.keep < 0:
            raise ValueError(f"keep is {self.keep}, it must be 0 or more")
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}, it must be from 0 to 1")
        if self.score not in SCORES:
            raise ValueError(f"score {self.score!r} is none of {', '.join(SCORES)}")

    def decide(self, image: ImageScores) -> Verdict:
        """Keeps `keep`, or `ratio` of those alive."""
        tokens = len(image.own)
        scores, note = self._scores(image)
        if self.ratio is None:
            count, asked = min(self.keep or 0, tokens), f"keeps up to {self.keep}"
        else:
            count, asked = math.floor(self.ratio * tokens + 0.5), f"keeps {self.ratio:.4g} of them"
        idle = f"all {tokens} tokens stay: {self.name} {asked}"
        return Verdict(scores, count, idle=idle, note=note)

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
        clusters = max(math.floor(recycled / self.members + 0.5), min(recycled, 1))
        merge = partial(self._merge, image, verdict.priority)
        return replace(verdict, count=verdict.count + clusters, merged=clusters, merge=merge)

    def _recycled(self, tokens: int) -> int:
        return math.floor(self.share * tokens + 0.5)

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


@dataclass(frozen=True)
class KeepNone(FixedRule):
    """Drops every visual token; `min_keep` spares the best by the mean score."""

    def decide(self, image: ImageScores) -> Verdict:
        """Keeps 0."""
        return Verdict(image.mean(), 0, idle="")


@dataclass(frozen=True)
class KeepAll(FixedRule):
    """Drops nothing; `max_keep` leaves the best by the mean score."""

    def decide(self, image: ImageScores) -> Verdict:
        """Keeps all."""
        tokens = len(image.own)
        return Verdict(image.mean(), tokens, idle=f"all {tokens} tokens stay: the rule is keep_all")


RULES: Mapping[str, type[Rule]] = {
    "atp": Atp,
    "top_k": TopK,
    "merge_rest": MergeRest,
    "recycle": Recycle,
    "keep_none": KeepNone,
    "keep_all": KeepAll,
}


def rule(name: str) -> type[Rule]:
    """The rule that a manifest calls by this name: one of `RULES`, or another package's.

    Raises:
        InputError: There is none; the message names the known ones.
    """
    found: type[Rule] | None = RULES.get(name) or registered.load_registered(
        registered.RULES, name, Rule
    )
    if found is None:
        known = [*RULES, *registered.registered_names(registered.RULES)]
        raise InputError(
            f"unknown pruning rule {name!r}",
            why=f"this runtime knows {', '.join(known)}.",
            fix="install the atp-llava that wrote the bundle, or the package that has the rule; or "
            "export it again.",
        )
    return found
