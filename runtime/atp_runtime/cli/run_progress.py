"""How far a number of runs is, on standard error."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from atp_runtime.evaluation.progress import progress_stream
from atp_runtime.progress_line import ProgressLine


def run_progress(*, quiet: bool) -> Callable[[int, int], None]:
    """To be told the runs that are done and the runs there will be."""
    line = ProgressLine(progress_stream(quiet=quiet), monotonic())

    def tell(done: int, total: int) -> None:
        if line.is_due(monotonic(), last=done == total):
            line.tell(f"run {done} of {total}")
        if done == total:
            line.end()

    return tell
