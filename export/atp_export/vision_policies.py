"""Policies that thin out an image's tokens before the decoder: behind the tower or the projector.

Like those of `atp_export.policies` they need no training and are written from their papers; one is
a frozen dataclass of its settings. It says by which rule of `atp_runtime.vision_rules` the runtime
decides, and so what the vision stage has to give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atp_export.policies import as_lists
from atp_export.tower_policies import Elip, ILlavaVit
from atp_export.vision_plan import (
    VisionPlan,
    VisionPolicy,
    by_class_token,
    check_cells,
    check_class_token,
    check_left,
    check_room,
    tokens_left,
    vision_pruning,
)
from atp_models.architecture import VisionSpec
from atp_runtime.cell_queries import COMPRESS, CellQueries
from atp_runtime.merging_rules import Contextual, Outliers
from atp_runtime.schema import from_json
from atp_runtime.vision_rules import ClassAttention, Inflection, MaxMinDistance

_FIX = "see docs/policies.md for the policies and their settings."


@dataclass(frozen=True)
class FasterVlm(VisionPolicy):
    """FasterVLM (arXiv 2412.01818): the tokens that the class token attends to most stay.

    Attributes:
        ratio: R, the share of the tokens that is dropped.
        keep: How many stay, instead of a share.
        layer: Of the tower, whose attention it is, counted from its end if negative; None is the
            one whose output the projector gets.
    """

    ratio: float = 0.75
    keep: int | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        check_left(self.ratio, self.keep)

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Behind the tower."""
        rule = ClassAttention(tokens_left(vision, self.ratio, self.keep))
        return by_class_token("fastervlm", vision, rule, "class_attention", self.layer)


@dataclass(frozen=True)
class DivPrune(VisionPolicy):
    """DivPrune (arXiv 2503.02175): tokens that are as unlike one another as can be.

    Attributes:
        ratio: The share of the tokens that is dropped; the paper keeps 9.8 %.
        keep: How many stay, instead of a share.
    """

    ratio: float = 0.902
    keep: int | None = None

    def __post_init__(self) -> None:
        check_left(self.ratio, self.keep)

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Behind the projector; works with every tower."""
        rule = MaxMinDistance(tokens_left(vision, self.ratio, self.keep))
        return VisionPlan(vision_pruning(rule, "max_min_distance", vision), rule.needs, cut=False)


@dataclass(frozen=True)
class InflectionPoint(VisionPolicy):
    """Sparsity Meets Similarity (arXiv 2409.01162), its first part: as many as the photo needs.

    Its second part, by visual and textual correlation in the decoder, is that of another policy.
    """

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Behind the tower."""
        check_class_token("inflection", vision)
        rule = Inflection()
        return VisionPlan(vision_pruning(rule, "inflection", vision), rule.needs, cut=True)


@dataclass(frozen=True)
class VisionZip(VisionPolicy):
    """VisionZip (arXiv 2412.04467): dominant tokens, and averages of the others.

    Attributes:
        keep: Tokens of an image, both kinds together.
        contextual: How many of them are averages.
        layer: As of `FasterVlm`.
    """

    keep: int = 64
    contextual: int = 10
    layer: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.contextual < self.keep:
            raise ValueError(
                f"contextual is {self.contextual}, it must be from 1 to below keep, {self.keep}"
            )

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Behind the tower."""
        check_room("keep", self.keep, vision)
        rule = Contextual(self.keep - self.contextual, self.contextual)
        return by_class_token("visionzip", vision, rule, "contextual", self.layer)


@dataclass(frozen=True)
class PruMerge(VisionPolicy):
    """LLaVA-PruMerge (arXiv 2403.15388): outliers of the class token's attention, with their like.

    Attributes:
        neighbours: k, how many others each absorbs.
        layer: As of `FasterVlm`.
    """

    neighbours: int = 32
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise ValueError(f"neighbours is {self.neighbours}, it must be 0 or more")

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Behind the tower."""
        rule = Outliers(self.neighbours)
        return by_class_token("prumerge", vision, rule, "outliers", self.layer)


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge+: also tokens at equal distances, so that no part of the photo is left out.

    Attributes:
        samples: How many for each outlier. Reconstructed: with three there are about four times
            as many tokens as PruMerge leaves, as in the paper.
    """

    samples: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, it must be 1 or more")

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Behind the tower."""
        rule = Outliers(self.neighbours, self.samples)
        return by_class_token("prumerge_plus", vision, rule, "outliers", self.layer)


@dataclass(frozen=True)
class QueCC(VisionPolicy):
    """QueCC (arXiv 2411.03312): a trained compressor makes one token of each cell of a photo.

    Its weights are the checkpoint's, see `atp_models.compressor`.

    Attributes:
        grid: Cells along each side; the one that it was trained for.
    """

    grid: int

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"grid is {self.grid}, it must be 1 or more")

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Before the projector; works with every tower, class token or not.

        Raises:
            InputError: Photos are no whole number of cells, or attention's heads do not fit.
        """
        check_cells(vision, self.grid)
        rule = CellQueries(self.grid)
        return VisionPlan(vision_pruning(rule, COMPRESS, vision), rule.needs, cut=False)


VISION_POLICIES: Mapping[str, type[VisionPolicy]] = {
    "fastervlm": FasterVlm,
    "divprune": DivPrune,
    "inflection": InflectionPoint,
    "visionzip": VisionZip,
    "prumerge": PruMerge,
    "prumerge_plus": PruMergePlus,
    "illava_vit": ILlavaVit,
    "elip": Elip,
    "quecc": QueCC,
}


def make_vision_policy(name: str, settings: Mapping[str, Any], source: str) -> VisionPolicy:
    """A policy with its settings; what is not set is as its paper has it.

    Args:
        name: A key of `VISION_POLICIES`.
        settings: By the names of its attributes, as JSON values.
        source: Where they come from, for messages.

    Raises:
        InputError: There is no such setting, or a value makes no sense.
    """
    kind = VISION_POLICIES[name]
    return from_json(kind, as_lists(kind, settings), source=f"{source}, policy {name}", fix=_FIX)
