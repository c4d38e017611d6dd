"""`atp-export`: compile a checkpoint, and look at, check or diagnose what was compiled.

Heavy packages are imported by the commands that need them, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from atp_export.engines.options import add_engine_options
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
        epilog="further commands: atp-export inspect BUNDLE | verify BUNDLE | check BUNDLE | "
        "engines BUNDLE | doctor (each with --help). Exit codes: 0 done, 1 a check failed, 2 wrong "
        "input, 3 the machine lacks something, 130 interrupted.",
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
        choices=("portable", "native", "both"),
        default="both",
        help="portable: opset 18, for ONNX Runtime and TensorRT 10.3 (JetPack 6); native: opset "
        "24, fused operators, for TensorRT >= 10.15; both share their weights (default: both)",
    )
    _add_cuts(parser)
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
        "--engines",
        action="store_true",
        help="then build TensorRT engines here, as atp-export engines does",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, sizes and predicted memory; write nothing",
    )
    return parser


def _add_cuts(parser: argparse.ArgumentParser) -> None:
    """Where the decoder is cut, and by what it prunes there."""
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
        "--policy",
        metavar="NAME",
        help="prune by a rule that needs no training instead of ATP's modules, inside the decoder "
        "such as fastv, before it such as visionzip, or by one of each as in fastervlm+fastv; "
        "docs/policies.md has them all",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of --policy, such as ratio=0.75 or layers=8,16,24",
    )
    parser.add_argument(
        "--max-segment-bytes",
        type=_bytes,
        metavar="SIZE",
        help="cut segments whose weights are larger, such as 900MB or 1.5GB: building an engine "
        "takes about four times the bytes of its weights (default: cut only where pruned)",
    )


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        message = f"{text!r} is not a list of layer numbers such as 4,14,24"
        raise argparse.ArgumentTypeError(message) from error


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)B?", text.upper())
    if not match:
        message = f"{text!r} is not a size such as 900MB or 1.5GB"
        raise argparse.ArgumentTypeError(message)
    return int(float(match[1]) * _UNITS[match[2]])


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


def _check_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-export check",
        description="Build every stage with TensorRT-RTX for Ampere, in every dialect of the "
        "bundle, as it is and in INT8, on a machine without a GPU; and lint the portable graphs "
        "for TensorRT 10.3. Proves acceptance, not speed.",
        epilog="Needs the extra 'check': pip install 'atp-llava[check]'.",
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--dialect", choices=("portable", "native"), help="check this one only (default: all)"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="longest sequence of the profiles (default: the bundle's)",
    )
    return parser


def _engines_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-export engines",
        description="Build the TensorRT engines of a bundle, on the device that will run them, "
        "and compare each with ONNX Runtime. What is built and unchanged is kept; interrupted, it "
        "resumes when run again. Needs TensorRT and Polygraphy, and no PyTorch.",
    )
    add_engine_options(parser)
    return parser


def _doctor_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="atp-export doctor",
        description="Show what this machine has for exporting, building engines and running.",
    )
    parser.add_argument(
        "bundle",
        nargs="?",
        type=Path,
        help="also say whether this bundle can be built and run here",
    )
    return parser


_PARSERS = {
    "export": _export_parser,
    "inspect": _inspect_parser,
    "verify": _verify_parser,
    "check": _check_parser,
    "engines": _engines_parser,
    "doctor": _doctor_parser,
}


if __name__ == "__main__":
    sys.exit(main())
