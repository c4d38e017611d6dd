"""What the command line says about quantisation.

Nothing heavy is imported, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_calibration.given_file import hash_of
from atp_runtime.errors import InputError

# As PARTS of `linear_layers` and RANGES of `search`, whose imports take time.
_PARTS = ("decoder", "vision", "projector", "head")
_RANGES = ("auto", "minmax", "percentile", "mse", "entropy")
_USUAL_PARTS = {"int8": ("decoder", "vision"), "int4": ("decoder",)}

_UNREADABLE = "the recipe cannot be read."
_FIX = "check the path."


@dataclass(frozen=True)
class QuantisationOptions:
    """What becomes of the linear layers.

    Attributes:
        precision: "int8": weights and activations; "int4": weights alone.
        parts: Of the network, which are quantised.
        ranges: What finds the ranges of activations.
        block_size: Inputs that share a scale in INT4.
        keep_high_precision: How many of the worst layers stay as they are.
        max_accuracy_drop: Points that accuracy on the samples may fall; as many of the worst
            layers stay as they are as that takes. None does not measure it.
        recipe: Decisions to replay, or None.
    """

    precision: str
    parts: tuple[str, ...]
    ranges: str = "auto"
    block_size: int = 64
    keep_high_precision: int = 0
    max_accuracy_drop: float | None = None
    recipe: Path | None = None

    def request(self) -> Mapping[str, Any]:
        """All that decides what comes out, as JSON values."""
        fields = {name: value for name, value in vars(self).items() if name != "recipe"}
        given = self.recipe
        content = None if given is None else hash_of(given, why=_UNREADABLE, fix=_FIX)
        return {**fields, "recipe": content}


def add_quantisation_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `quantisation_options` reads."""
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--precision",
        choices=tuple(_USUAL_PARTS),
        help="int8: weights and activations of the linear layers; int4: their weights alone",
    )
    group.add_argument(
        "--parts",
        type=_parts,
        metavar="decoder,vision",
        help="what is quantised, of decoder, vision, projector and head (default: "
        "decoder,vision for int8, decoder for int4)",
    )
    group.add_argument(
        "--ranges",
        choices=_RANGES,
        default=_RANGES[0],
        help="how the range of an activation is found (default: the best of them, layer by layer)",
    )
    group.add_argument(
        "--block-size",
        type=int,
        choices=(32, 64, 128),
        default=64,
        help="inputs that share a scale in int4 (default: %(default)s)",
    )
    sensitive = group.add_mutually_exclusive_group()
    sensitive.add_argument(
        "--keep-high-precision",
        type=int,
        default=0,
        metavar="N",
        help="leave the N layers with the largest errors as they are",
    )
    sensitive.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="POINTS",
        help="leave as many of them as it takes for the answers to DATA to lose no more than that",
    )
    group.add_argument(
        "--recipe", type=Path, metavar="FILE", help="replay the recipe.yaml of another calibration"
    )


def quantisation_options(options: argparse.Namespace) -> QuantisationOptions | None:
    """What was asked for; None if no precision was given.

    Raises:
        InputError: An option needs another one, or a value makes no sense.
    """
    if options.precision is None:
        if options.recipe or options.max_accuracy_drop is not None or options.keep_high_precision:
            raise InputError(
                "an option about precision without --precision",
                why="without it the bundle's precision stays as it is.",
                fix="add --precision int8 or int4.",
            )
        return None
    if options.keep_high_precision < 0:
        what = f"--keep-high-precision {options.keep_high_precision}"
        raise InputError(what, why="it is a number of layers.", fix="give 0 or more.")
    drop = options.max_accuracy_drop
    if drop is not None and not 0 <= drop <= 100:
        what = f"--max-accuracy-drop {drop}"
        raise InputError(what, why="it is in points of accuracy.", fix="give 0 to 100.")
    return QuantisationOptions(
        precision=options.precision,
        parts=options.parts or _USUAL_PARTS[options.precision],
        ranges=options.ranges,
        block_size=options.block_size,
        keep_high_precision=options.keep_high_precision,
        max_accuracy_drop=drop,
        recipe=options.recipe,
    )


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if not parts or set(parts) - set(_PARTS):
        message = f"{text!r} is not a list of {', '.join(_PARTS)}"
        raise argparse.ArgumentTypeError(message)
    return tuple(part for part in _PARTS if part in parts)
