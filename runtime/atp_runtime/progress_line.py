"""A line about long work: it changes on a terminal, elsewhere there is another now and then."""

from __future__ import annotations

from typing import TextIO

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 30.0


class ProgressLine:
    """Writes to a stream.

    Args:
        stream: Where to; None says nothing.
        now: The time, in seconds.
    """

    def __init__(self, stream: TextIO | None, now: float) -> None:
        self._stream = stream
        self._terminal = stream is not None and stream.isatty()
        self._width = 0
        self._told = now

    def begin(self, now: float) -> None:
        """Leaves the line for another task's."""
        self.end()
        self._told = now

    def is_due(self, now: float, *, last: bool) -> bool:
        """Whether it is time to tell something; the last thing always is told."""
        pause = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        due = last or now - self._told >= pause
        self._told = now if due else self._told
        return due

    def tell(self, line: str) -> None:
        """Says how far it is."""
        if self._stream is None:
            return
        if self._terminal:
            print(f"\r{line:<{self._width}}", end="", file=self._stream, flush=True)
            self._width = len(line)
        else:
            print(line, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Says something that stays."""
        self.end()
        if self._stream:
            print(text, file=self._stream, flush=True)

    def end(self) -> None:
        """Leaves the line."""
        if self._terminal and self._width and self._stream:
            print(file=self._stream, flush=True)
        self._width = 0
