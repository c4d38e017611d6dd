"""Timing that compares like with like: every variant in every round, medians at the end."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A line of the report.

    Attributes:
        case: What was compared.
        measured: The number, in `unit`.
        unit: "s", "ms", "x" for a ratio, "GB" ...
        bar: What the project promises, such as "<= 1.03"; empty for context.
        met: Whether the promise holds; None without a promise.
    """

    case: str
    measured: float
    unit: str
    bar: str = ""
    met: bool | None = None


def at_most(case: str, measured: float, limit: float, unit: str = "x") -> Row:
    """A row whose number must not exceed `limit`."""
    return Row(case, measured, unit, f"<= {limit:g}", measured <= limit)


def at_least(case: str, measured: float, limit: float, unit: str = "x") -> Row:
    """A row whose number must reach `limit`."""
    return Row(case, measured, unit, f">= {limit:g}", measured >= limit)


def interleaved(
    variants: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            gc.collect()
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            if number:
                times[name].append(seconds)
    return times


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios round by round: noise that hits a round hits both."""
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(a / b for a, b in pairs)


@dataclass(frozen=True)
class Child:
    """A finished process: its exit code, seconds and peak resident bytes."""

    code: int
    seconds: float
    peak: int


def run_child(command: list[str], log: Path) -> Child:
    """Runs a command, its output in `log`, and reports what it used."""
    start = time.perf_counter()
    with log.open("wb") as output:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
            ],
        )
        _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    return Child(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * 1024)
