"""Progress on standard error: bars on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Advance = Callable[[int], None]


class Reporter(Protocol):
    """Where long work says what it is doing."""

    def note(self, text: str) -> None:
        """Says one line."""
        ...

    def waiting(self, title: str) -> contextlib.AbstractContextManager[object]:
        """Accompanies work of unknown length."""
        ...

    def task(self, title: str, total_bytes: int) -> contextlib.AbstractContextManager[Advance]:
        """Accompanies work on so many bytes; the value is called with each advance."""
        ...


def make_reporter(*, quiet: bool) -> Reporter:
    """The reporter that fits where standard error goes."""
    if quiet:
        return QuietReporter()
    return BarReporter() if sys.stderr.isatty() else LineReporter()


class QuietReporter:
    """Says nothing."""

    def note(self, text: str) -> None:
        """Drops the line."""

    def waiting(self, title: str) -> contextlib.AbstractContextManager[object]:  # noqa: ARG002
        """Runs the work in silence."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def task(self, title: str, total_bytes: int) -> Iterator[Advance]:  # noqa: ARG002
        """Runs the work in silence."""
        yield lambda _count: None


class LineReporter:
    """A line when something is finished, for logs and pipes."""

    def note(self, text: str) -> None:
        """Prints the line."""
        print(text, file=sys.stderr, flush=True)

    def waiting(self, title: str) -> contextlib.AbstractContextManager[object]:  # noqa: ARG002
        """Runs the work in silence; the line of the step that it belongs to follows."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def task(self, title: str, total_bytes: int) -> Iterator[Advance]:
        """Prints one line with size and time when the work is done."""
        start = time.perf_counter()
        yield lambda _count: None
        seconds = time.perf_counter() - start
        self.note(f"{title}: {total_bytes / 1e6:.1f} MB in {seconds:.1f} s")


class BarReporter:
    """Bars with speed and time left."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def note(self, text: str) -> None:
        """Prints the line."""
        self._console.print(text, highlight=False, markup=False)

    def waiting(self, title: str) -> contextlib.AbstractContextManager[object]:
        """Shows a spinner, which goes away when the work is done."""
        return self._console.status(title)

    @contextlib.contextmanager
    def task(self, title: str, total_bytes: int) -> Iterator[Advance]:
        """Shows a bar while the work runs; it stays, full, when the work is done."""
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=total_bytes)
            yield lambda count: progress.advance(task, count)
