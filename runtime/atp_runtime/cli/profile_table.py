"""What `atp-profile` does without a question: it measures a latency table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.cli.command import print_json, print_note
from atp_runtime.cli.run_progress import run_progress
from atp_runtime.errors import InputError
from atp_runtime.latency.sweep import default_tokens, measure
from atp_runtime.latency.table import (
    DIRECTORY,
    LatencyTable,
    MeasuredLatency,
    Timing,
    this_setting,
    write_table,
)
from atp_runtime.schema import to_json
from atp_runtime.session import Session


def profile_table(options: argparse.Namespace) -> int:
    """Measures and writes the table; returns the exit code."""
    setting = this_setting(options.backend, options.threads)
    bundle = Bundle.open(options.bundle)
    path = options.output or bundle.root / DIRECTORY / setting.file_name
    _check_writable(path)
    backend = open_backend(
        options.backend, threads=options.threads, cuda_graphs=options.cuda_graphs
    )
    with Session(bundle, backend) as session:
        tokens = options.tokens or default_tokens(session.model)
        told = run_progress(quiet=options.quiet)
        table = measure(session, bundle, setting, tokens, options.runs, options.warmup, told)
    write_table(path, table)
    if options.json:
        print_json({"table": str(path), **to_json(table)})
        return 0
    for line in table_lines(table):
        print(line)
    if not options.quiet:
        print_note(f"table: {path}")
    return 0


def table_lines(table: LatencyTable) -> list[str]:
    """A table for people: medians in milliseconds, a stage a line."""
    lengths = [timing.tokens for timing in table.prefill]
    rows = [(name, timings) for name, timings in table.stages.items() if name.startswith("segment")]
    if table.between:
        rows.append(("each point", table.between))
    rows.append(("whole prefill", table.prefill))
    rows.append(("... p95", tuple(_p95(timing) for timing in table.prefill)))
    lines = [f"{table.setting}", f"{'ms for tokens':<14}" + "".join(f"{it:>9}" for it in lengths)]
    lines += [f"{name:<14}{_milliseconds(timings)}" for name, timings in rows]
    others = [name for name in table.stages if not name.startswith("segment")]
    lines += [f"{name:<14}{_milliseconds(table.stages[name])}" for name in others]
    spread = 100 * (MeasuredLatency(table).spread - 1)
    return [*lines, f"p95 is {spread:.1f} % above the median; {table.runs} runs each"]


def _p95(timing: Timing) -> Timing:
    return Timing(timing.tokens, timing.p95_seconds, timing.p95_seconds)


def _milliseconds(timings: Sequence[Timing]) -> str:
    return "".join(f"{1e3 * timing.median_seconds:>9.2f}" for timing in timings)


def _check_writable(path: Path) -> None:
    """Refuses before minutes are spent on what cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(path.name + ".part")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}",
            why="the table cannot be written there.",
            fix="choose another file with --output.",
        ) from error
