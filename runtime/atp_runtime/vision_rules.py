"""The rules that thin out an image's tokens before the decoder, by the manifest's names.

A rule is the frozen dataclass of its parameters. From what the vision stage gives for one image it
says which tokens there will be: features that stay, and such that are averages of several. The
decoder gets them as a shorter sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from atp_runtime.cell_queries import COMPRESS, CellQueries
from atp_runtime.errors import InputError
from atp_runtime.merging_rules import Contextual, Outliers
from atp_runtime.reduction import Given, Reduction, VisionRule, best, check_count, units
from atp_runtime.tensor_names import CLASS_ATTENTION, CLASS_SIMILARITY, IMAGE_FEATURES
from atp_runtime.tower_merging import RULE, TowerMerge

_ROUNDING = 1e-12


@dataclass(frozen=True)
class ClassAttention(VisionRule):
    """The tokens that the class token attends to most (FasterVLM, arXiv 2412.01818).

    Attributes:
        keep: How many.
    """

    needs = (CLASS_ATTENTION,)
    keep: int

    def __post_init__(self) -> None:
        check_count("keep", self.keep)

    def reduce(self, given: Given) -> Reduction:
        """Keeps `keep`, in their order."""
        return Reduction(best(given[CLASS_ATTENTION].astype(np.float64), self.keep))

    def most(self, tokens: int) -> int:
        """`keep`."""
        return min(self.keep, tokens)


@dataclass(frozen=True)
class MaxMinDistance(VisionRule):
    """Tokens that are as unlike one another as can be (DivPrune, arXiv 2503.02175).

    Greedy: first the one that is farthest from its nearest other, then always the one that is
    farthest from the nearest of those chosen. The distance is 1 - cosine of projected features.

    Attributes:
        keep: How many.
    """

    needs = (IMAGE_FEATURES,)
    keep: int

    def __post_init__(self) -> None:
        check_count("keep", self.keep)

    def reduce(self, given: Given) -> Reduction:
        """Keeps `keep`, in their order."""
        unit = units(given[IMAGE_FEATURES])
        distance = 1 - unit @ unit.T
        np.fill_diagonal(distance, np.inf)
        chosen = [int(np.argmax(distance.min(axis=1)))]
        nearest = distance[chosen[0]].copy()
        nearest[chosen[0]] = -np.inf
        while len(chosen) < min(self.keep, len(unit)):
            chosen.append(int(np.argmax(nearest)))
            nearest = np.minimum(nearest, distance[chosen[-1]])
            nearest[chosen[-1]] = -np.inf
        return Reduction(np.sort(np.array(chosen)))

    def most(self, tokens: int) -> int:
        """`keep`."""
        return min(self.keep, tokens)


@dataclass(frozen=True)
class Inflection(VisionRule):
    """The tokens before the curve of falling class similarity bends (arXiv 2409.01162).

    The paper gives no formula of the inflection point. Reconstructed: the point of the sorted
    curve that is farthest from the straight line between its ends; it is the last that stays.
    """

    needs = (CLASS_SIMILARITY,)

    def reduce(self, given: Given) -> Reduction:
        """Keeps what comes up to the bend; all, if the curve is a straight line."""
        scores = given[CLASS_SIMILARITY].astype(np.float64)
        falling = np.sort(scores)[::-1]
        last = len(falling) - 1
        # The distance times the line's length.
        rest = last * (falling[0] - falling) - np.arange(last + 1) * (falling[0] - falling[-1])
        bend = np.abs(rest)
        straight = bend.max() <= _ROUNDING * last * (falling[0] - falling[-1])
        return Reduction(best(scores, last + 1 if straight else int(np.argmax(bend)) + 1))

    def most(self, tokens: int) -> int:
        """All of them."""
        return tokens


VISION_RULES: Mapping[str, type[VisionRule]] = {
    "class_attention": ClassAttention,
    "max_min_distance": MaxMinDistance,
    "inflection": Inflection,
    "contextual": Contextual,
    "outliers": Outliers,
    RULE: TowerMerge,
    COMPRESS: CellQueries,
}


def vision_rule(name: str) -> type[VisionRule]:
    """The rule that a manifest calls by this name.

    Raises:
        InputError: There is none; the message names the known ones.
    """
    if name in VISION_RULES:
        return VISION_RULES[name]
    raise InputError(
        f"unknown rule {name!r} behind the vision tower",
        why=f"this runtime knows {', '.join(VISION_RULES)}.",
        fix="install the atp-llava that wrote the bundle, or export it again.",
    )
