"""What a policy before the decoder makes of the vision stage, and what it asks of a tower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from atp_models.architecture import VisionSpec
from atp_models.compressor import HEADS
from atp_runtime.cell_queries import COMPRESS, CellQueries
from atp_runtime.errors import InputError
from atp_runtime.manifest import VisionPruning
from atp_runtime.reduction import VisionRule
from atp_runtime.schema import from_json, to_json
from atp_runtime.tower_merging import RULE, TowerMerge


@dataclass(frozen=True)
class VisionPlan:
    """How the vision stage is made for a policy.

    Attributes:
        pruning: For the manifest.
        needs: Outputs of the vision stage that the rule decides by.
        cut: Whether the rule stands before the projector, which then is a stage of its own.
    """

    pruning: VisionPruning
    needs: tuple[str, ...]
    cut: bool

    @property
    def merging(self) -> TowerMerge | None:
        """What is merged between the tower's layers, if that is what it does."""
        if self.pruning.rule != RULE:
            return None
        return from_json(TowerMerge, to_json(self.pruning.parameters), source=RULE, fix="")

    @property
    def compressing(self) -> CellQueries | None:
        """What becomes of patches before the projector, if a trained compressor stands there."""
        if self.pruning.rule != COMPRESS:
            return None
        return from_json(CellQueries, to_json(self.pruning.parameters), source=COMPRESS, fix="")

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


def by_class_token(
    policy: str, vision: VisionSpec, rule: VisionRule, name: str, layer: int | None = None
) -> VisionPlan:
    """The plan of a policy that asks the class token, behind the tower.

    Args:
        policy: Its name, for messages.
        vision: The tower.
        rule: The runtime's, with its parameters.
        name: What a manifest calls it.
        layer: Of the tower, counted from its end if negative; None is the one whose output the
            projector gets.

    Raises:
        InputError: The tower has no class token or hands it on as a feature, or has no such layer.
    """
    check_class_token(policy, vision)
    asked = _tower_layer(policy, vision, layer)
    return VisionPlan(vision_pruning(rule, name, vision, asked), rule.needs, cut=True)


def vision_pruning(
    rule: VisionRule, name: str, vision: VisionSpec, layer: int | None = None
) -> VisionPruning:
    """A rule as the manifest has it; arguments as of `by_class_token`."""
    return VisionPruning(name, to_json(rule), rule.most(vision.tokens), layer)


def check_class_token(policy: str, vision: VisionSpec) -> None:
    """Refuses a tower whose patches cannot be ranked by a class token.

    Raises:
        InputError: It has none, or the checkpoint hands it on as a feature.
    """
    if not vision.has_class_token:
        raise InputError(
            f"--policy {policy} on a {vision.family} tower",
            why="it ranks patches by what the class token sees, and this tower has none.",
            fix="choose divprune, which needs none, or a policy inside the decoder.",
        )
    if vision.prefix_tokens:
        raise InputError(
            f"--policy {policy} on a checkpoint that hands the class token on",
            why="vision_feature_select_strategy is 'full', and the paper's rule ranks patches, "
            "not the token that it asks.",
            fix="choose divprune, or a policy inside the decoder.",
        )


def check_cells(vision: VisionSpec, grid: int) -> None:
    """Refuses a tower whose features cannot be compressed by their cells.

    Raises:
        InputError: They are not all patches of a photo and nothing else, or no whole number of
            cells, or as wide as attention's heads cannot share.
    """
    rows, columns = vision.grid
    if vision.tokens != rows * columns:
        raise InputError(
            f"--policy quecc on {vision.tokens} features of {rows} x {columns} patches",
            why="cells are made of all patches and nothing else, and "
            f"vision_feature_select_strategy is {vision.select_strategy!r} on a {vision.family} "
            "tower.",
            fix="give a checkpoint with 'default' where there is a class token, else with 'full'.",
        )
    if rows % grid or columns % grid:
        raise InputError(
            f"--policy quecc: {rows} x {columns} patches on a grid of {grid} x {grid} cells",
            why="each cell has as many patches as any other.",
            fix="choose a number that divides both.",
        )
    if vision.hidden % HEADS:
        raise InputError(
            f"--policy quecc on a tower of width {vision.hidden}",
            why=f"the compressor's attention has {HEADS} heads, which share it equally.",
            fix="choose another policy, such as divprune.",
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


def tokens_left(vision: VisionSpec, ratio: float, keep: int | None) -> int:
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


def check_left(ratio: float, keep: int | None) -> None:
    """Refuses what would leave nothing.

    Raises:
        ValueError: It would.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is {ratio}, it must be from 0 to below 1")
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}, it must be 1 or more")
