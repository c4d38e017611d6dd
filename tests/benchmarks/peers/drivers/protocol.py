"""What a driver does with a job: load, warm up, answer every case, say what that took.

Runs inside a contestant's own environment, so it needs the standard library alone. The job comes
as JSON on standard input, and every line on standard output that begins with `MARK` is a JSON
object of the answer; what a library prints besides is left alone.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

MARK = "@@ "
Told = Callable[[int], object]
Generate = Callable[[dict[str, Any], Told], None]
"""Answers a case's `prompt` greedily with `tokens` tokens, telling each as soon as it is picked."""


def serve(open_model: Callable[[dict[str, Any]], Generate], *packages: str) -> None:
    """Does the job on standard input.

    Args:
        open_model: Loads the job's `artefact`, to run on `threads` threads with room for
            `capacity` tokens.
        packages: Distributions whose versions are told.
    """
    job = json.load(sys.stdin)
    # Importing is over: a service pays that once, whatever it loads.
    began = time.perf_counter()
    generate = open_model(job)
    tell(
        load_seconds=time.perf_counter() - began,
        versions={name: metadata.version(name) for name in packages},
    )
    # Libraries lay out weights and compile kernels at the first run; that is no one's first token.
    check: list[int] = []
    generate(job["check"], check.append)
    tell(check=check)
    for number, case in enumerate(job["cases"]):
        times = [time.perf_counter()]
        generate(case, lambda _, times=times: times.append(time.perf_counter()))
        if len(times) - 1 != case["tokens"]:
            raise SystemExit(f"{len(times) - 1} of {case['tokens']} tokens came")
        took = [after - before for before, after in itertools.pairwise(times)]
        tell(case=number, first_token=took[0], later=took[1:], peak_bytes=peak_bytes())


def tell_features(features: Any, case: dict[str, Any], told: Told) -> None:
    """Tells an image's features [tokens, channels] as a token each: its greatest channel."""
    for row in features[: case["tokens"]]:
        told(int(row.argmax()))


def tell(**answer: object) -> None:
    """Prints a line of the answer."""
    print(MARK + json.dumps(answer), flush=True)


def peak_bytes() -> int:
    """The process's highest resident memory so far; 0 where the system does not say."""
    status = Path("/proc/self/status")
    # Not getrusage: its peak includes that of the program that started this one.
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
