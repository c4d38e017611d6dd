"""Progress on standard error: bars on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Advance = Callable[[int], None]
_LINE_SECONDS = 30.0


class Progress(Protocol):
    """Where long work says what it is doing."""

    def note(self, text: str) -> None:
        """Says one line."""
        ...

    def task(self, title: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        """Accompanies so many pieces of work; the value is called with each advance."""
        ...


def make_progress(*, quiet: bool) -> Progress:
    """The kind that fits where standard error goes."""
    if quiet:
        return Silence()
    return TerminalBars() if sys.stderr.isatty() else Lines()


class Silence:
    """Says nothing."""

    def note(self, text: str) -> None:
        """Drops the line."""

    @contextlib.contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:  # noqa: ARG002
        """Runs the work in silence."""
        yield lambda _count: None


class Lines:
    """A line now and then, for logs and pipes."""

    def note(self, text: str) -> None:
        """Prints the line."""
        print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        """Prints how far the work is every half a minute, and when it is done."""
        began = told = time.perf_counter()
        finished = 0

        def advance(count: int) -> None:
            nonlocal finished, told
            finished += count
            if time.perf_counter() - told >= _LINE_SECONDS:
                told = time.perf_counter()
                self.note(f"{title}: {finished} of {total}")

        yield advance
        self.note(f"{title}: {total} in {time.perf_counter() - began:.1f} s")


class TerminalBars:
    """Bars with the time left."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def note(self, text: str) -> None:
        """Prints the line."""
        self._console.print(text, highlight=False, markup=False)

    @contextlib.contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        """Shows a bar while the work runs."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Bars(*columns, console=self._console) as bars:
            task = bars.add_task(title, total=total)
            yield lambda count: bars.advance(task, count)
