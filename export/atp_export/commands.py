"""What each command of `atp-export` does with its options; returns the exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from atp_export.describe import print_bundle, print_plan
from atp_export.doctor import examine, print_findings
from atp_export.footprint import predict_footprint
from atp_export.job import ExportJob, prepare_job
from atp_export.parity import render_tree
from atp_export.pipeline import ExportResult, export_bundle, require_parity
from atp_export.plan import plan_summary
from atp_export.progress import make_reporter
from atp_export.verify import print_verdict, require_verified, verify_bundle
from atp_runtime.bundle import Bundle
from atp_runtime.cli.command import print_json
from atp_runtime.manifest import read_manifest
from atp_runtime.schema import to_json


def export(options: argparse.Namespace) -> int:
    """`atp-export CHECKPOINT BUNDLE`."""
    job = prepare_job(
        options.checkpoint,
        options.bundle,
        precision=options.precision,
        dialect=options.dialect,
        prune_at=options.prune_at,
        dense=options.dense,
        max_tokens=options.max_tokens,
        command=options.command,
    )
    if options.dry_run:
        return _dry_run(job, as_json=options.json)
    reporter = make_reporter(quiet=options.quiet or options.json)
    result = export_bundle(job, parity=options.parity, reporter=reporter)
    if options.json:
        print_json(_export_document(job, result))
    elif not options.quiet:
        _print_result(job, result)
    require_parity(job, result)
    return 0


def _dry_run(job: ExportJob, *, as_json: bool) -> int:
    footprint = predict_footprint(job.plan)
    if as_json:
        print_json({"plan": to_json(plan_summary(job.plan)), "footprint": to_json(footprint)})
    else:
        print_plan(job.plan, footprint, Console())
    return 0


def _export_document(job: ExportJob, result: ExportResult) -> dict[str, Any]:
    return {
        "bundle": str(job.bundle),
        "unchanged": result.unchanged,
        "resumed": list(result.resumed),
        "seconds": result.seconds,
        "notice": job.notice,
        "parity": to_json(result.parity),
    }


def _print_result(job: ExportJob, result: ExportResult) -> None:
    console = Console()
    if result.unchanged:
        console.print(f"{job.bundle}: already exported from the same inputs", highlight=False)
        return
    if result.parity is not None:
        console.print(render_tree(result.parity), highlight=False, markup=False)
        if not result.parity.passed:
            return
    if job.notice:
        console.print(job.notice, style="yellow", highlight=False)
    seconds = result.seconds["total"]
    console.print(f"{job.bundle}: exported in {seconds:.1f} s", highlight=False)


def inspect(options: argparse.Namespace) -> int:
    """`atp-export inspect BUNDLE`."""
    if options.json:
        print_json(to_json(read_manifest(options.bundle)))
    else:
        print_bundle(Bundle.open(options.bundle), Console())
    return 0


def verify(options: argparse.Namespace) -> int:
    """`atp-export verify BUNDLE`."""
    reporter = make_reporter(quiet=options.quiet or options.json)
    checkpoint: Path | None = options.checkpoint
    verdict = verify_bundle(options.bundle, checkpoint, parity=options.parity, reporter=reporter)
    if options.json:
        print_json(to_json(verdict))
    elif not options.quiet:
        print_verdict(verdict, Console())
    require_verified(options.bundle, verdict)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """`atp-export doctor`."""
    findings = examine()
    if options.json:
        print_json(to_json(findings))
    else:
        print_findings(findings, Console())
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "export": export,
    "inspect": inspect,
    "verify": verify,
    "doctor": doctor,
}
