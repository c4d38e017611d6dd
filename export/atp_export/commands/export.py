"""`atp-export CHECKPOINT BUNDLE`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from rich.console import Console

from atp_export.commands.engines import make_engines, print_made
from atp_export.commands.outcome import end
from atp_export.describe_plan import print_plan
from atp_export.engines.library import device_library
from atp_export.engines.options import EngineOptions
from atp_export.footprint import predict_footprint
from atp_export.job import ExportJob, ExportOptions, prepare_job
from atp_export.layout import PARITY_REPORT
from atp_export.parity import render_tree
from atp_export.pipeline import ExportResult, export_bundle, parity_failure
from atp_export.plan import plan_summary
from atp_export.policies import read_settings
from atp_export.progress import make_reporter
from atp_export.signatures import plan_signatures
from atp_export.structure_flops import structure_flops
from atp_runtime.cli.command import print_json
from atp_runtime.schema import to_json


def run(options: argparse.Namespace) -> int:
    """Exports, or with `--dry-run` describes what would be exported."""
    job = prepare_job(
        options.checkpoint,
        options.bundle,
        ExportOptions(
            precision=options.precision,
            dialect=options.dialect,
            prune_at=options.prune_at,
            dense=options.dense,
            redundancy=options.redundancy,
            policy=options.policy,
            settings=read_settings(options.set),
            max_tokens=options.max_tokens,
            max_segment_bytes=options.max_segment_bytes,
        ),
    )
    job = replace(job, command=options.command)
    if options.dry_run:
        return _dry_run(job, as_json=options.json)
    # Asked before the export, which may take long.
    library = device_library() if options.engines else None
    reporter = make_reporter(quiet=options.quiet or options.json)
    result = export_bundle(job, parity=options.parity, reporter=reporter)
    if not (options.quiet or options.json):
        _print_result(job, result, Console(soft_wrap=True))
    failure = parity_failure(job, result)
    document = _document(job, result)
    if library is not None and failure is None:
        wanted = EngineOptions(max_tokens=options.max_tokens)
        made = make_engines(job.bundle, library, wanted, check=True, reporter=reporter)
        if not (options.quiet or options.json):
            print_made(made, Console(soft_wrap=True))
        failure, document["engines"] = made.failure, made.document()
    return end(failure, document if options.json else None)


def _dry_run(job: ExportJob, *, as_json: bool) -> int:
    footprint = predict_footprint(job.plan)
    if as_json:
        plan = plan_summary(job.plan)
        document = {"plan": plan, "stages": plan_signatures(job.plan), "footprint": footprint}
        if flops := structure_flops(job.plan):
            document["structure_flops"] = flops
        print_json(to_json(document))
    else:
        print_plan(job.plan, footprint, Console())
    return 0


def _document(job: ExportJob, result: ExportResult) -> dict[str, Any]:
    return {
        "bundle": str(job.bundle),
        "unchanged": result.unchanged,
        "resumed": list(result.resumed),
        "seconds": result.seconds,
        "notice": job.notice,
        "parity": to_json(result.parity),
    }


def _print_result(job: ExportJob, result: ExportResult, console: Console) -> None:
    if result.unchanged:
        text = f"{job.bundle}: already there, exported from the same checkpoint and options"
        console.print(text, highlight=False, markup=False)
        if not (job.bundle / PARITY_REPORT).is_file():
            text = "it was not compared with PyTorch; atp-export verify --checkpoint does so"
            console.print(text, highlight=False, markup=False)
        return
    if result.parity is not None:
        console.print(render_tree(result.parity), highlight=False, markup=False)
        if not result.parity.passed:
            return
    flops = structure_flops(job.plan)
    for line in flops.lines() if flops else ():
        console.print(line, highlight=False, markup=False)
    if job.notice:
        console.print(job.notice, style="yellow", highlight=False, markup=False)
    text = f"{job.bundle}: exported in {result.seconds['total']:.1f} s"
    console.print(text, highlight=False, markup=False)
