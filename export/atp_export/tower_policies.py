"""Policies that merge an image's patches between the layers of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atp_export.vision_plan import VisionPlan, VisionPolicy, vision_pruning
from atp_models.architecture import VisionSpec
from atp_runtime.errors import InputError
from atp_runtime.tower_merging import RULE, TowerMerge

MOST_SORTED = 3840
"""Elements that TensorRT's TopK gives at most."""
_ILLAVA_LAYERS, _ILLAVA_DEPTH = (5, 6, 7, 8), 27


@dataclass(frozen=True)
class ILlavaVit(VisionPolicy):
    """iLLaVA (arXiv 2412.06263), what it does in the tower: step by step, into one token each.

    Reconstructed: by the attention that a patch gets (see `ReceivedScorer`), which weighs the
    merged ones, too; behind a layer, where the authors' code merges before its feed-forward part.

    Attributes:
        ratio: The share of an image's patches that is gone behind the last of `layers`; as many go
            at each. The paper merges 92 of 729 at each of four.
        layers: Behind which (0-indexed); None is 5 to 8 of 27, as in the paper, at this depth.
    """

    ratio: float = 0.5
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}, it must be above 0 and below 1")

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Inside the tower; works with every tower."""
        usual = {at * vision.layers // _ILLAVA_DEPTH for at in _ILLAVA_LAYERS}
        within = range(last_merge("illava_vit", vision) + 1)
        layers = tuple(sorted(usual & {*within})) if self.layers is None else self.layers
        shares = [1 - self.ratio * step / len(layers) for step in range(1, len(layers) + 1)]
        return merging_plan("illava_vit", vision, layers, shares)


def merging_plan(
    policy: str, vision: VisionSpec, layers: Sequence[int], shares: Sequence[float]
) -> VisionPlan:
    """The plan of a policy that merges inside the tower.

    Args:
        policy: Its name, for messages.
        vision: The tower.
        layers: Behind which, rising.
        shares: Of an image's patches, left behind each; rounded to the nearest, a half up, and at
            least one.

    Raises:
        InputError: The tower has no such layers, or there is nothing to merge.
    """
    _check_layers(policy, vision, layers)
    patches, keep = vision.mergeable_patches, dict[int, int]()
    for layer, share in zip(layers, shares, strict=True):
        left = max(1, int(share * patches + 0.5))
        if left < min(keep.values(), default=patches):
            keep[layer] = left
    if not keep:
        raise InputError(
            f"--policy {policy}: none of {patches} patches would be merged",
            why="the share of them that leaves is less than one patch.",
            fix="let more of them leave.",
        )
    if max(keep.values()) > MOST_SORTED:
        raise InputError(
            f"--policy {policy} leaves {max(keep.values())} of {patches} patches at first",
            why=f"TensorRT's TopK sorts {MOST_SORTED} at most.",
            fix="let more of them leave there, or choose a policy behind the tower.",
        )
    rule = TowerMerge(tuple(keep), tuple(keep.values()), vision.prefix_tokens)
    return VisionPlan(vision_pruning(rule, RULE, vision), rule.needs, cut=False)


def last_merge(policy: str, vision: VisionSpec) -> int:
    """The last layer (0-indexed) behind which a layer is computed for all features.

    Raises:
        InputError: There is none.
    """
    used = vision.feature_layer
    last = (used if isinstance(used, int) else min(used)) - 2
    if last < 0:
        raise InputError(
            f"--policy {policy} on features of the tower's layer {last + 1}",
            why="patches are merged between layers that are computed before features are taken.",
            fix="choose a policy behind the tower, or one inside the decoder.",
        )
    return last


def _check_layers(policy: str, vision: VisionSpec, layers: Sequence[int]) -> None:
    last = last_merge(policy, vision)
    if (
        list(layers) != sorted(set(layers))
        or not layers
        or not 0 <= layers[0] <= layers[-1] <= last
    ):
        raise InputError(
            f"--policy {policy}: behind the layers {', '.join(map(str, layers)) or 'none'}",
            why=f"features are taken of what leaves layer {last + 1}, and a layer must follow each "
            "merge.",
            fix=f"choose layers from 0 to {last}, each once, rising.",
        )
