"""`atp-export`: compile a checkpoint, and look at, check or diagnose what was compiled.

Heavy packages are imported by the commands that need them, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_runtime.cli.command import CommandParser, add_output_options, run_command, wants_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `atp-export`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        name = words[0] if words and words[0] in _PARSERS else "export"
        parser = _PARSERS[name]()
        add_output_options(parser)
        options = parser.parse_args(words[1:] if words[:1] == [name] else words)
        options.command = shlex.join(["atp-export", *words])
        code: int = importlib.import_module(f"atp_export.commands.{name}").run(options)
        return code

    return run_command("atp-export", work, as_json=wants_json(words))


def _export_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-export",
        description="Compile an ATP-LLaVA checkpoint into a bundle of ONNX segments cut at the "
        "pruning points. Interrupted, it resumes when run again.",
        epilog="further commands: atp-export inspect BUNDLE | verify BUNDLE | doctor "
        "(each with --help). Exit codes: 0 done, 1 parity failed, 2 wrong input, 3 the machine "
        "lacks something, 130 interrupted.",
    )
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face LLaVA directory")
    parser.add_argument("bundle", type=Path, help="the directory to make")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp16",
        help="of weights, hidden states and caches (default: fp16)",
    )
    parser.add_argument(
        "--dialect",
        choices=("portable", "native"),
        default="portable",
        help="portable: opset 18, for TensorRT 10.3 (JetPack 6); native: opset 24, fused "
        "operators, for TensorRT >= 10.15 (default: portable)",
    )
    pruning = parser.add_mutually_exclusive_group()
    pruning.add_argument(
        "--prune-at",
        type=_layers,
        metavar="4,14,24",
        help="layers before which visual tokens are dropped (default: the checkpoint's "
        "pruning_config.json, else 12.5, 43.75 and 75 %% of the depth)",
    )
    pruning.add_argument("--dense", action="store_true", help="no pruning, one segment")
    parser.add_argument(
        "--redundancy",
        choices=("both", "self", "cross", "none"),
        help="which scores the redundancy criterion is made of; none: only sampling grids decide "
        "(default: the checkpoint's pruning_config.json, else both)",
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest sequence (default: the model's own)"
    )
    parser.add_argument(
        "--parity",
        choices=("auto", "full", "sampled", "off"),
        default="auto",
        help="how to compare with PyTorch afterwards (default: full where memory allows, else "
        "a few layers at a time)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, sizes and predicted memory; write nothing",
    )
    return parser


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is not a list of layer numbers such as 4,14,24"
        raise argparse.ArgumentTypeError(message) from error


def _inspect_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-export inspect", description="Show a bundle's stages, shapes, sizes and origin."
    )
    parser.add_argument("bundle", type=Path)
    return parser


def _verify_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-export verify",
        description="Check a bundle: every file's hash, the ONNX checker and, given the "
        "checkpoint, parity with PyTorch.",
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="compare with this checkpoint")
    parser.add_argument("--parity", choices=("auto", "full", "sampled"), default="auto")
    return parser


def _doctor_parser() -> argparse.ArgumentParser:
    return CommandParser(
        prog="atp-export doctor",
        description="Show what this machine has for exporting, building engines and running.",
    )


_PARSERS = {
    "export": _export_parser,
    "inspect": _inspect_parser,
    "verify": _verify_parser,
    "doctor": _doctor_parser,
}


if __name__ == "__main__":
    sys.exit(main())
