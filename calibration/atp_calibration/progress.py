"""Says how far long work has come: one changing line on a terminal, now and then one elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from atp_runtime.evaluation.progress import duration

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 30.0


class Progress:
    """Tells a stream about one task after the other.

    Args:
        stream: Where to; None says nothing.
        clock: Seconds.
    """

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream is not None and stream.isatty()
        self._width = 0
        self.begin("", 0)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Begins a task.

        Args:
            title: What is counted.
            total: How many there are.
            done: How many were done before.
        """
        self.end()
        self._title, self._total = title, total
        self._earlier = self._done = done
        self._began = self._told = self._clock()

    def step(self) -> None:
        """Counts one."""
        self._done += 1
        now = self._clock()
        pause = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        if now - self._told >= pause or self._done == self._total:
            self._told = now
            rate = (self._done - self._earlier) / max(now - self._began, 1e-9)
            left = duration((self._total - self._done) / rate)
            self._tell(f"{self._title}: {self._done}/{self._total}, {left} left")

    def end(self) -> None:
        """Leaves the line."""
        if self._terminal and self._width and self._stream:
            print(file=self._stream, flush=True)
        self._width = 0

    def note(self, text: str) -> None:
        """Says a line."""
        self.end()
        if self._stream:
            print(text, file=self._stream, flush=True)

    def _tell(self, line: str) -> None:
        if self._stream is None:
            return
        if self._terminal:
            print(f"\r{line:<{self._width}}", end="", file=self._stream, flush=True)
            self._width = len(line)
        else:
            print(line, file=self._stream, flush=True)
