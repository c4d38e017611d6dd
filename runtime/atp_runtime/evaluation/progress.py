"""Says on standard error how far a run has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from atp_runtime.evaluation.answer_log import AnsweredQuestion
from atp_runtime.progress_line import ProgressLine


class Progress:
    """One line that changes on a terminal, a line every half minute elsewhere.

    Args:
        total: Questions to ask in all.
        before: Those that were answered in an earlier start.
        stream: Where to; None says nothing.
        clock: Seconds.
    """

    def __init__(
        self,
        total: int,
        before: list[AnsweredQuestion],
        stream: TextIO | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._earlier = self._done = len(before)
        self._scores = [it.score for it in before if it.score is not None]
        self._clock = clock
        self._began = clock()
        self._line = ProgressLine(stream, self._began)

    def answered(self, it: AnsweredQuestion) -> None:
        """Counts an answer."""
        self._done += 1
        self._scores += [] if it.score is None else [it.score]
        now = self._clock()
        if self._line.is_due(now, last=self._done == self._total):
            self._line.tell(self._text(now))

    def end(self) -> None:
        """Leaves the line."""
        self._line.end()

    def _text(self, now: float) -> str:
        rate = (self._done - self._earlier) / max(now - self._began, 1e-9)
        parts = [f"{self._done}/{self._total}"]
        if self._scores:
            parts.append(f"score {100 * sum(self._scores) / len(self._scores):.1f} %")
        left = (self._total - self._done) / rate
        return ", ".join([*parts, f"{rate:.2f} questions/s", f"{duration(left)} left"])


def progress_stream(*, quiet: bool) -> TextIO | None:
    """Where progress goes."""
    return None if quiet else sys.stderr


def duration(seconds: float) -> str:
    """A time for people: "1 h 05 min", "3 min 20 s", "12 s"."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
