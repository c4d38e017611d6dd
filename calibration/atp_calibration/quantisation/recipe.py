"""The recipe: all decisions of a calibration, written to be read, changed and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from atp_calibration.quantisation.choice import PRECISIONS, Choice
from atp_calibration.quantisation.linear_layers import PARTS
from atp_runtime.errors import InputError
from atp_runtime.schema import from_json, to_json

_FIX = "use the recipe.yaml of a calibrated bundle, or leave --recipe away."


@dataclass(frozen=True)
class Recipe:
    """What decides a quantised bundle, together with the samples.

    Attributes:
        precision: "int8" or "int4".
        parts: Of the network, see `linear_layers`.
        block_size: Inputs that share a scale in INT4.
        high_precision: Layers that stay as they are, by their weights' names.
        choices: For the others, and for these if they are not to be.
    """

    precision: str
    parts: tuple[str, ...]
    block_size: int
    high_precision: tuple[str, ...]
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not int8 or int4")
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise ValueError(f"part {unknown[0]!r} is not one of {', '.join(PARTS)}")
        known = {name for choice in self.choices for name in choice.layers}
        strange = sorted(set(self.high_precision) - known)
        if strange:
            raise ValueError(f"high_precision names {strange[0]!r}, which no choice has")


def worst_layers(choices: Sequence[Choice]) -> list[tuple[str, float]]:
    """Layers and the errors of their outputs, the largest first."""
    errors = [item for choice in choices for item in choice.errors.items()]
    return sorted(errors, key=lambda item: -item[1])


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML."""
    return str(yaml.safe_dump(to_json(recipe), sort_keys=False, width=100))


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        InputError: It is not there, or no recipe.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {error}", why="it is no recipe.", fix=_FIX) from error
    return from_json(Recipe, value, source=str(path), fix=_FIX)
