"""Tells how far a fit is, task after task."""

from __future__ import annotations

from typing import TextIO

from atp_calibration.progress import Progress


class BudgetProgress:
    """A `Told` that speaks through `Progress`.

    Args:
        stream: Where to; None says nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._progress = Progress(stream)
        self._task = ("", 0)
        self._done = 0

    def __call__(self, work: str, done: int, total: int) -> None:
        """`done` of `total` are done of that work."""
        if (work, total) != self._task or done <= self._done:
            self._task = (work, total)
            self._progress.begin(work, total, done - 1)
        self._done = done
        self._progress.step()

    def end(self) -> None:
        """Leaves the line."""
        self._progress.end()
