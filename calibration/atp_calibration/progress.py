"""Says how far long work has come: one changing line on a terminal, now and then one elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from atp_runtime.evaluation.progress import duration
from atp_runtime.progress_line import ProgressLine


class Progress:
    """Tells a stream about one task after the other.

    Args:
        stream: Where to; None says nothing.
        clock: Seconds.
    """

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._line = ProgressLine(stream, clock())
        self.begin("", 0)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Begins a task.

        Args:
            title: What is counted.
            total: How many there are.
            done: How many were done before.
        """
        self._title, self._total = title, total
        self._earlier = self._done = done
        self._began = self._clock()
        self._line.begin(self._began)

    def step(self) -> None:
        """Counts one."""
        self._done += 1
        now = self._clock()
        if self._line.is_due(now, last=self._done == self._total):
            rate = (self._done - self._earlier) / max(now - self._began, 1e-9)
            left = duration((self._total - self._done) / rate)
            self._line.tell(f"{self._title}: {self._done}/{self._total}, {left} left")

    def end(self) -> None:
        """Leaves the line."""
        self._line.end()

    def note(self, text: str) -> None:
        """Says a line."""
        self._line.note(text)
