"""What `atp-export engines` can be told. Imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built; None leaves the choice to the bundle or to TensorRT.

    Attributes:
        dialect: "portable" or "native".
        max_tokens: Longest sequence the engines take.
        kept: Visual tokens expected behind each pruning point.
        workspace_bytes: Scratch memory that TensorRT may use while it tries tactics.
        optimisation_level: 0 builds fastest, 5 searches longest.
    """

    dialect: str | None = None
    max_tokens: int | None = None
    kept: tuple[int, ...] | None = None
    workspace_bytes: int | None = None
    optimisation_level: int | None = None


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `atp-export engines`, without `--json` and `--quiet`."""
    parser.add_argument("bundle", type=Path, help="the directory that atp-export wrote")
    parser.add_argument(
        "--dialect",
        choices=("portable", "native"),
        help="graphs to build from (default: native where TensorRT has its operators and the "
        "bundle is fp16, else portable)",
    )
    parser.add_argument(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help="longest sequence the engines take; fewer need less scratch memory (default: the "
        "bundle's)",
    )
    parser.add_argument(
        "--kept",
        type=_counts,
        metavar="300,150,60",
        help="visual tokens expected behind each pruning point, which later segments are tuned "
        "for (default: all)",
    )
    parser.add_argument(
        "--workspace",
        type=_positive,
        metavar="MIB",
        help="scratch memory for trying tactics; less lowers the peak of a build (default: what "
        "the GPU has)",
    )
    parser.add_argument(
        "--optimisation-level",
        type=int,
        choices=range(6),
        help="0 builds fastest, 5 searches longest (default: TensorRT's, 3)",
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not compare the engines with ONNX Runtime afterwards",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="print weights and predicted build memory of each stage; build nothing",
    )
    instead.add_argument(
        "--print-trtexec",
        action="store_true",
        help="print equivalent trtexec commands; build nothing",
    )


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """What was asked for on the command line."""
    workspace = options.workspace
    return EngineOptions(
        dialect=options.dialect,
        max_tokens=options.max_tokens,
        kept=options.kept,
        workspace_bytes=None if workspace is None else workspace << 20,
        optimisation_level=options.optimisation_level,
    )


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        message = f"{text!r} is not a list of token counts such as 300,150,60"
        raise argparse.ArgumentTypeError(message)
    return tuple(int(part) for part in parts)
