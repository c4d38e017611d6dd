"""What `atp-eval compare CHECKPOINT DATA --policies …` does with its options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from atp_runtime.cli.command import print_json, print_note
from atp_runtime.cli.run_progress import run_progress
from atp_runtime.errors import InputError
from atp_runtime.evaluation.comparison import ComparedRun, ScoredRun, compare
from atp_runtime.evaluation.data_file import Document
from atp_runtime.evaluation.draw import draw
from atp_runtime.evaluation.evaluation import Plan, evaluate
from atp_runtime.evaluation.formats.format import ReadOptions
from atp_runtime.evaluation.formats.registry import find_format, read_dataset
from atp_runtime.evaluation.json_files import write_declared, write_whole
from atp_runtime.evaluation.machine import this_machine
from atp_runtime.policies.chart import comparison_svg
from atp_runtime.policies.entrant import Entrant, read_entrants
from atp_runtime.policies.exporting import export_entrant
from atp_runtime.policies.result import FORMAT, SCHEMA_VERSION, Comparison, policy_results
from atp_runtime.policies.tables import comparison_csv, comparison_markdown
from atp_runtime.policies.timing import TimingPlan, time_bundles
from atp_runtime.profiling.measure import RunBy
from atp_runtime.profiling.timed_turn import Question
from atp_runtime.schema import to_json

JSON, MARKDOWN, CSV, SVG = (f"comparison.{it}" for it in ("json", "md", "csv", "svg"))


def compare_policies(options: argparse.Namespace) -> int:
    """Exports, asks, times, and writes what was found; returns the exit code."""
    entrants = read_entrants(options.policies)
    timing = TimingPlan(_timed_questions(options), options.rounds, options.new_tokens)
    output: Path = options.output or Path(f"policies-{options.checkpoint.resolve().name}")
    bundles = {str(it): output / "bundles" / it.directory for it in entrants}
    plans = {str(it): _plan(options, it, bundles[str(it)], output) for it in entrants}
    output.mkdir(parents=True, exist_ok=True)
    for entrant in entrants:
        _say(options, f"{entrant}: bundle")
        bundle = bundles[str(entrant)]
        export_entrant(options.checkpoint, bundle, entrant, options.precision, quiet=options.quiet)
    runs = {}
    for name, plan in plans.items():
        _say(options, f"{name}: answers")
        evaluate(plan, None if options.quiet else sys.stderr)
        runs[name] = ScoredRun.read(plan.directory)
    _say(options, "times")
    run_by = RunBy(options.backend, options.threads, options.cuda_graphs)
    times = time_bundles(bundles, timing, run_by, run_progress(quiet=options.quiet))
    first = next(iter(runs.values()))
    comparison = Comparison(
        FORMAT,
        SCHEMA_VERSION,
        options.checkpoint.resolve().name,
        options.precision,
        options.data.name,
        first.report.metric,
        len(first.scores),
        len(timing.questions) * timing.rounds,
        timing.new_tokens,
        options.backend,
        this_machine(options.threads),
        policy_results(_compared(runs), times),
    )
    return _written(options, comparison, output)


def _timed_questions(options: argparse.Namespace) -> tuple[Question, ...]:
    if options.timed < 1:
        why = "there would be nothing to measure."
        raise InputError(f"--timed {options.timed}", why=why, fix="choose 1 or more.")
    document = Document.read(options.data)
    format_ = find_format(document, None)
    questions = read_dataset(document, format_, ReadOptions()).questions
    drawn = draw(questions, min(options.timed, len(questions)), options.seed)
    return tuple(Question(it.text(format_.suffix), tuple(it.sources())) for it in drawn)


def _plan(options: argparse.Namespace, entrant: Entrant, bundle: Path, output: Path) -> Plan:
    return Plan(
        bundle=bundle,
        data=options.data,
        limit=options.limit,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
        backend=options.backend,
        threads=options.threads,
        cuda_graphs=options.cuda_graphs,
        output=output / "runs" / entrant.directory,
    )


def _compared(runs: Mapping[str, ScoredRun]) -> dict[str, ComparedRun]:
    return dict(zip(runs, compare(list(runs.values())), strict=True))


def _written(options: argparse.Namespace, comparison: Comparison, output: Path) -> int:
    told = comparison_markdown(comparison)
    write_whole(output / MARKDOWN, told)
    write_whole(output / CSV, comparison_csv(comparison))
    write_whole(output / SVG, comparison_svg(comparison))
    write_declared(output / JSON, comparison)
    if options.json:
        print_json({"output": str(output), **to_json(comparison)})
    else:
        print(told)
    if not options.quiet:
        print_note(f"report: {output / MARKDOWN}, picture: {output / SVG}")
    return 0


def _say(options: argparse.Namespace, line: str) -> None:
    if not options.quiet:
        print_note(line)
