"""What `atp-eval compare` does with its options."""

from __future__ import annotations

import argparse

from atp_runtime.cli.command import print_json
from atp_runtime.evaluation.comparison import ScoredRun, compare, write_comparison
from atp_runtime.schema import to_json


def compare_runs(options: argparse.Namespace) -> int:
    """Compares the runs; returns the exit code."""
    runs = [ScoredRun.read(path) for path in options.reports]
    compared = compare(runs)
    if options.json:
        print_json({"runs": to_json(compared)})
    else:
        print(write_comparison(compared, runs[0].report.metric))
    return 0
