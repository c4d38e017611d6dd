"""`atp-export engines BUNDLE`: build TensorRT engines, on the device that will run them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from atp_export.commands.outcome import end
from atp_export.engines.builder import BuildResult, build_engines
from atp_export.engines.comparison import EnginesReport, check_engines, check_failure, report_file
from atp_export.engines.describe import print_agreement, print_engines, print_forecast
from atp_export.engines.library import Library, device_library
from atp_export.engines.memory import forecast_build
from atp_export.engines.options import EngineOptions, engine_options
from atp_export.engines.profiles import stage_profiles
from atp_export.engines.trtexec import trtexec_commands
from atp_export.progress import Reporter, make_reporter
from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.cli.command import print_json
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import PORTABLE, read_manifest
from atp_runtime.schema import to_json


def run(options: argparse.Namespace) -> int:
    """Builds and checks the engines, or says how or with how much memory it would."""
    if options.print_trtexec:
        return _print_trtexec(options)
    if options.dry_run:
        return _dry_run(options)
    made = make_engines(
        options.bundle,
        device_library(),
        engine_options(options),
        check=not options.no_check,
        reporter=make_reporter(quiet=options.quiet or options.json),
    )
    if not (options.quiet or options.json):
        print_made(made, Console(soft_wrap=True))
    return end(made.failure, made.document() if options.json else None)


@dataclass(frozen=True)
class MadeEngines:
    """Engines, and whether they compute what ONNX Runtime does.

    Attributes:
        built: The engines.
        report: Of the check, or None if none was wanted.
        report_path: Where it is.
    """

    built: BuildResult
    report: EnginesReport | None
    report_path: Path

    @property
    def failure(self) -> CheckFailedError | None:
        """What the check found wrong, if anything."""
        return None if self.report is None else check_failure(self.report, self.report_path)

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            **to_json(self.built),
            "directory": str(self.built.directory),
            "check": to_json(self.report),
        }


def make_engines(
    path: Path, library: Library, wanted: EngineOptions, *, check: bool, reporter: Reporter
) -> MadeEngines:
    """Builds the engines of a bundle for this machine, and compares them with ONNX Runtime.

    Raises:
        InputError: The bundle cannot be used, or the options do not fit it.
        MachineError: Memory, disk space or a GPU is missing.
    """
    bundle = Bundle.open(path)
    built = build_engines(bundle, library, wanted, reporter)
    report = None
    if check:
        engines, reference = open_backend("tensorrt"), open_backend("onnxruntime")
        report = check_engines(bundle, built, engines, reference, reporter)
    return MadeEngines(built, report, bundle.root / report_file(built.target))


def print_made(made: MadeEngines, console: Console) -> None:
    """Prints a table of the engines, and one of the check."""
    print_engines(made.built, console)
    if made.report is not None:
        console.print()
        print_agreement(made.report, console)


def _dry_run(options: argparse.Namespace) -> int:
    manifest, wanted = read_manifest(options.bundle), engine_options(options)
    forecast = forecast_build(manifest)
    profiles = {stage.name: stage_profiles(manifest, stage, wanted) for stage in manifest.stages}
    if options.json:
        print_json({"forecast": to_json(forecast), "profiles": to_json(profiles)})
    else:
        print_forecast(forecast, profiles, Console(soft_wrap=True))
    return 0


def _print_trtexec(options: argparse.Namespace) -> int:
    manifest, wanted = read_manifest(options.bundle), engine_options(options)
    # Without TensorRT nobody knows what it takes; the portable graphs build everywhere.
    portable = PORTABLE if PORTABLE in manifest.dialects else manifest.dialect
    dialect = wanted.dialect or portable
    commands = trtexec_commands(options.bundle, manifest.in_dialect(dialect), wanted)
    if options.json:
        print_json({"dialect": dialect, "commands": list(commands)})
    else:
        print(*commands, sep="\n")
    return 0
