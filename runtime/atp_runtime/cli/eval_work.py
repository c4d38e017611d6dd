"""What `atp-eval` does with its options."""

from __future__ import annotations

import argparse
import sys

from atp_runtime.cli.command import print_json, print_note
from atp_runtime.evaluation.evaluation import Plan, evaluate
from atp_runtime.evaluation.formats.format import ReadOptions
from atp_runtime.evaluation.pruning_choice import PruningChoice
from atp_runtime.evaluation.report import REPORT_MARKDOWN
from atp_runtime.evaluation.report_markdown import write_scores
from atp_runtime.schema import to_json


def evaluate_bundle(options: argparse.Namespace) -> int:
    """Evaluates; returns the exit code."""
    plan = _plan(options)
    report = evaluate(plan, None if options.quiet else sys.stderr)
    if options.json:
        print_json(to_json(report))
        return 0
    print(write_scores(report))
    if not options.quiet:
        print_note(f"report: {plan.directory / REPORT_MARKDOWN}")
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        bundle=options.bundle,
        data=options.data,
        format=options.format,
        read=ReadOptions(
            images=options.images,
            annotations=options.annotations,
            split=options.split,
            circular=not options.no_circular,
        ),
        limit=options.limit,
        seed=options.seed,
        suffix=options.prompt_suffix,
        max_new_tokens=options.max_new_tokens,
        choice=PruningChoice(options.select, options.keep),
        images=not options.without_images,
        backend=options.backend,
        threads=options.threads,
        cuda_graphs=options.cuda_graphs,
        output=options.output,
        restart=options.restart,
    )
