"""Policies that thin out an image's tokens before the decoder: behind the tower or the projector.

Like those of `atp_export.policies` they need no training and are written from their papers; one is
a frozen dataclass of its settings. It says by which rule of `atp_runtime.vision_rules` the runtime
decides, and so what the vision stage has to give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atp_models.architecture import VisionSpec
from atp_runtime.errors import InputError
from atp_runtime.manifest import VisionPruning
from atp_runtime.schema import from_json, to_json
from atp_runtime.vision_rules import ClassAttention, VisionRule

_FIX = "see docs/policies.md for the policies and their settings."


@dataclass(frozen=True)
class VisionPlan:
    """How the vision stage is made for a policy.

    Attributes:
        pruning: For the manifest.
        needs: Further outputs of the vision stage, which the rule decides by.
        cut: Whether the rule stands before the projector, which then is a stage of its own.
    """

    pruning: VisionPruning
    needs: tuple[str, ...]
    cut: bool

    @property
    def layer(self) -> int:
        """The tower's layer that scorers look at.

        Raises:
            ValueError: None does.
        """
        if self.pruning.layer is None:
            raise ValueError(f"the rule {self.pruning.rule} looks at no layer")
        return self.pruning.layer


class VisionPolicy(ABC):
    """How an image's tokens are thinned out before the decoder sees them."""

    @abstractmethod
    def plan(self, vision: VisionSpec) -> VisionPlan:
        """What the vision stage has to give, and the rule.

        Args:
            vision: The tower.

        Raises:
            InputError: The policy cannot work with this tower, or not with these settings.
        """


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
        _check_left(self.ratio, self.keep)

    def plan(self, vision: VisionSpec) -> VisionPlan:
        """Behind the tower."""
        rule = ClassAttention(_left(vision, self.ratio, self.keep))
        return by_class_token("fastervlm", vision, rule, "class_attention", self.layer)


def by_class_token(
    policy: str, vision: VisionSpec, rule: VisionRule, name: str, layer: int | None
) -> VisionPlan:
    """The plan of a policy that asks the class token, behind the tower.

    Args:
        policy: Its name, for messages.
        vision: The tower.
        rule: The runtime's, with its parameters.
        name: What a manifest calls it.
        layer: As the setting of `FasterVlm`.

    Raises:
        InputError: The tower has no class token or hands it on as a feature, or has no such layer.
    """
    _check_class_token(policy, vision)
    asked = _tower_layer(policy, vision, layer)
    return VisionPlan(_pruning(rule, name, vision, asked), rule.needs, cut=True)


VISION_POLICIES: Mapping[str, type[VisionPolicy]] = {
    "fastervlm": FasterVlm,
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
    return from_json(kind, dict(settings), source=f"{source}, policy {name}", fix=_FIX)


def _pruning(
    rule: VisionRule, name: str, vision: VisionSpec, layer: int | None = None
) -> VisionPruning:
    return VisionPruning(name, to_json(rule), rule.most(vision.tokens), layer)


def _check_class_token(policy: str, vision: VisionSpec) -> None:
    if not vision.has_class_token:
        raise InputError(
            f"--policy {policy} on a {vision.family} tower",
            why="it ranks patches by what the class token sees, and this tower has none.",
            fix="choose divprune, which needs none, or a policy inside the decoder.",
        )
    if vision.prefix_tokens:
        raise InputError(
            f"--policy {policy} on a checkpoint that hands the class token to the decoder",
            why="vision_feature_select_strategy is 'full', and the paper's rule ranks patches, "
            "not the token that it asks.",
            fix="choose divprune, or a policy inside the decoder.",
        )


def _tower_layer(policy: str, vision: VisionSpec, layer: int | None) -> int:
    """The layer (0-indexed) whose attention is looked at."""
    used = vision.feature_layer
    last = (used if isinstance(used, int) else max(used)) - 1
    if last < 0:
        raise InputError(
            f"--policy {policy} on a tower without layers",
            why="vision_feature_layer is 0, so no attention is computed to rank patches by.",
            fix="choose divprune, or a policy inside the decoder.",
        )
    if layer is None:
        return last
    counted = layer + vision.layers if layer < 0 else layer
    if not 0 <= counted <= last:
        raise InputError(
            f"--policy {policy}: layer {layer} of the tower",
            why=f"the tower has {vision.layers} layers, and those above layer {last} are not "
            "computed, as no feature is taken there.",
            fix=f"choose a layer from 0 to {last}, or from {-vision.layers} to "
            f"{last - vision.layers}; leave it away for the last of them.",
        )
    return counted


def _left(vision: VisionSpec, ratio: float, keep: int | None) -> int:
    """Tokens that stay: of a share rounded to the nearest, a half up, and at least one."""
    if keep is not None:
        check_room("keep", keep, vision)
        return keep
    return max(1, int((1 - ratio) * vision.tokens + 0.5))


def check_room(name: str, count: int, vision: VisionSpec) -> None:
    """Refuses a number of tokens beyond those that an image has.

    Raises:
        InputError: It is.
    """
    if count > vision.tokens:
        raise InputError(
            f"{name} is {count}",
            why=f"an image has {vision.tokens} tokens here.",
            fix=f"choose a number up to {vision.tokens}.",
        )


def _check_left(ratio: float, keep: int | None) -> None:
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is {ratio}, it must be from 0 to below 1")
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}, it must be 1 or more")
