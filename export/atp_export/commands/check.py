"""`atp-export check BUNDLE`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from atp_export.check.acceptance import CheckReport, check_bundle
from atp_export.check.describe import print_check
from atp_export.commands.outcome import end
from atp_export.engines.options import EngineOptions
from atp_export.layout import CHECK_REPORT
from atp_export.progress import make_reporter
from atp_export.workspace import write_atomically
from atp_runtime.bundle import Bundle
from atp_runtime.errors import CheckFailedError
from atp_runtime.schema import to_json


def run(options: argparse.Namespace) -> int:
    """Checks what TensorRT makes of a bundle."""
    bundle = Bundle.open(options.bundle)
    reporter = make_reporter(quiet=options.quiet or options.json)
    wanted = EngineOptions(dialect=options.dialect, max_tokens=options.max_tokens)
    report = check_bundle(bundle, wanted, reporter)
    write_atomically(bundle.root / CHECK_REPORT, json.dumps(to_json(report), indent=2) + "\n")
    if not (options.quiet or options.json):
        print_check(report, Console(soft_wrap=True))
    return end(_failure(options.bundle, report), to_json(report) if options.json else None)


def _failure(path: Path, report: CheckReport) -> CheckFailedError | None:
    if report.passed:
        return None
    refused = sum(not verdict.accepted for verdict in report.verdicts)
    parts = [f"{refused} of {len(report.verdicts)} graphs became no engine"] if refused else []
    parts += [f"{len(report.lint)} graphs are beyond TensorRT 10.3"] if report.lint else []
    return CheckFailedError(
        f"{path}: TensorRT will not take this bundle",
        why="; ".join(parts) + ".",
        fix=f"read {CHECK_REPORT} of the bundle; try the other --dialect or another precision.",
    )
