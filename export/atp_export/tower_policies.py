"""Policies that merge an image's patches between the layers of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atp_export.vision_plan import VisionPlan, VisionPolicy, vision_pruning
from atp_models.architecture import VisionSpec
from atp_runtime.errors import InputError
from atp_runtime.tower_merging import CLASS, RECEIVED, RULE, TowerMerge

MOST_SORTED = 3840
"""Elements that TensorRT's TopK gives at most."""
_ILLAVA_LAYERS, _ILLAVA_DEPTH = (5, 6, 7, 8), 27
_ELIP_LAYERS, _ELIP_DEPTH = (2, 4, 10), 12


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


@dataclass(frozen=True)
class Elip(VisionPolicy):
    """ELIP (arXiv 2309.16738): what the class token, having heard the question, cares least for.

    Reconstructed for LLaVA, which has no text encoder of the tower's: see `CarriedText` and
    `TextQuery`. Patches are ranked by one layer's attention; the authors' code runs two to six
    layers ahead for it, which is meant for training.

    Attributes:
        keep: Shares of an image's patches that stay at each of `layers`; the rest becomes one more.
        layers: Before which (0-indexed, from 1); None is 2, 4 and 10 of 12, as in the paper, at
            this depth.
        text: 1 - lambda, the question's share; with 0 the class token is not told.
    """

    keep: tuple[float, ...] = (0.9, 0.65, 0.4)
    layers: tuple[int, ...] | None = None
    text: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.text <= 1:
            raise ValueError(f"text is {self.text}, it must be from 0 to 1")
        if not self.keep or not all(0 <= share < 1 for share in self.keep):
            raise ValueError(f"keep is {list(self.keep)}, each must be from 0 to below 1")
        if list(self.keep) != sorted(set(self.keep), reverse=True):
            raise ValueError(f"keep is {list(self.keep)}, it must fall")

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Inside the tower.

        Raises:
            InputError: It has no class token, or no such layers.
        """
        if not vision.has_class_token:
            raise InputError(
                f"--policy elip on a {vision.family} tower",
                why="it ranks patches by what the class token sees, and this tower has none.",
                fix="choose illava_vit or divprune, which need none, or a policy inside the "
                "decoder.",
            )
        last = last_merge("elip", vision)
        steps = dict[int, float]()
        if self.layers is None:
            check_equally_many("elip", _ELIP_LAYERS, self.keep)
            for at, share in zip(_ELIP_LAYERS, self.keep, strict=True):
                steps[min(max(at * vision.layers // _ELIP_DEPTH - 1, 0), last)] = share
        else:
            check_equally_many("elip", self.layers, self.keep)
            steps = {at - 1: share for at, share in zip(self.layers, self.keep, strict=True)}
        layers, shares = tuple(steps), tuple(steps.values())
        return merging_plan("elip", vision, layers, shares, more=1, score=CLASS, text=self.text)


def check_equally_many(policy: str, layers: Sequence[int], keep: Sequence[float]) -> None:
    """Refuses layers without a share each.

    Raises:
        InputError: There are more or fewer.
    """
    if len(layers) != len(keep) or list(layers) != sorted(set(layers)):
        raise InputError(
            f"--policy {policy}: {len(layers)} layers and {len(keep)} shares to keep",
            why="each layer, once and rising, has its own share.",
            fix="set both layers and keep, equally many.",
        )


def merging_plan(
    policy: str,
    vision: VisionSpec,
    layers: Sequence[int],
    shares: Sequence[float],
    *,
    more: int = 0,
    score: str = RECEIVED,
    text: float = 0.0,
) -> VisionPlan:
    """The plan of a policy that merges inside the tower.

    Args:
        policy: Its name, for messages.
        vision: The tower.
        layers: Behind which, rising.
        shares: Of an image's patches, left behind each; rounded to the nearest, a half up, and at
            least one.
        more: Patches that are left besides.
        score: See `TowerMerge`.
        text: See `TowerMerge`.

    Raises:
        InputError: The tower has no such layers, or there is nothing to merge.
    """
    _check_layers(policy, vision, layers)
    patches, keep = vision.mergeable_patches, dict[int, int]()
    for layer, share in zip(layers, shares, strict=True):
        left = max(1, int(share * patches + 0.5) + more)
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
    counts = tuple(keep.values())
    rule = TowerMerge(tuple(keep), counts, vision.prefix_tokens, score, text)
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
