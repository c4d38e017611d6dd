"""`just bench scaling`: options, and what is printed and written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from tests.benchmarks.scaling.chart import curve_csv, curve_svg
from tests.benchmarks.scaling.curves import AFTER, CURVES, FIRST, Point, measure
from tests.benchmarks.workbench import OUTPUT


def main(arguments: Sequence[str]) -> int:
    """Measures the chosen curves; exit code 0."""
    parser = argparse.ArgumentParser(
        prog="just bench scaling",
        description="Time against one thing at a time, on ONNX Runtime, with random weights.",
    )
    parser.add_argument("curves", nargs="*", choices=[*CURVES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    directory = OUTPUT / "scaling"
    directory.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    for name in options.curves or CURVES:
        curve = CURVES[name]
        points = measure(curve, options.rounds, console.print)
        later = "tokens after it" if name == "output" else AFTER
        (directory / f"{name}.csv").write_text(curve_csv(points), encoding="utf-8")
        (directory / f"{name}.svg").write_text(curve_svg(curve, points, later), encoding="utf-8")
        _print(curve.title, curve.across, points, later)
    print(f"written to {directory}")
    return 0


def _print(title: str, across: str, points: Sequence[Point], later: str) -> None:
    table = Table(title=title, box=None)
    for column in (across, f"{FIRST}, ms", f"{later}, ms"):
        table.add_column(column, justify="right")
    for it in points:
        table.add_row(
            str(it.value), f"{1e3 * it.first_seconds:.1f}", f"{1e3 * it.later_seconds:.1f}"
        )
    Console().print(table)
