"""Watches a build: its phases on the terminal, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

T = TypeVar("T")
_DRAWN = 4  # phases within phases


class BuildMonitor(Protocol):
    """Told what TensorRT is doing: phases within phases, each of so many steps."""

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins; names are unique among the phases that run."""
        ...

    def step_done(self, name: str, step: int) -> None:
        """A step of a phase is done, counted from 0."""
        ...

    def phase_ended(self, name: str) -> None:
        """A phase ends."""
        ...


class SilentMonitor:
    """Shows nothing."""

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """Nothing."""

    def step_done(self, name: str, step: int) -> None:
        """Nothing."""

    def phase_ended(self, name: str) -> None:
        """Nothing."""


class PhaseBars:
    """A bar for each phase that runs, indented below its parent's, on standard error.

    Only the outermost are drawn: further down they come and go many times a second.

    Args:
        title: What is being built.
        console: Another place to draw on.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        columns = (
            TextColumn("{task.description:<48}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        drawn_on = console or Console(stderr=True)
        self._progress = Progress(*columns, console=drawn_on, transient=True)
        self._title = title
        self._depths: dict[str, int] = {}
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> PhaseBars:
        """Begins to draw."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bars away."""
        self._progress.stop()

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """Adds a bar."""
        depth = self._depths[name] = self._depths.get(parent or "", -1) + 1
        if depth < _DRAWN:
            text = "  " * depth + name if depth else f"{self._title}: {name}"
            self._bars[name] = self._progress.add_task(text, total=steps)

    def step_done(self, name: str, step: int) -> None:
        """Moves the bar."""
        if name in self._bars:
            self._progress.update(self._bars[name], completed=step + 1)

    def phase_ended(self, name: str) -> None:
        """Removes the bar."""
        self._depths.pop(name, None)
        if name in self._bars:
            self._progress.remove_task(self._bars.pop(name))


def trt_monitor(trt: Any, monitor: BuildMonitor, cancelled: threading.Event) -> Any:
    """A `trt.IProgressMonitor` that passes on what it is told, and stops the build if cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.phase_started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            monitor.step_done(phase_name, step)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            monitor.phase_ended(phase_name)

    return Monitor()


def run_interruptibly(work: Callable[[], T], cancelled: threading.Event) -> T:
    """Runs work that sits in C++ for minutes so that Ctrl-C is seen at once.

    Python handles signals in its main thread and between two of its own instructions only, so
    the work runs in another thread. It is asked to stop and waited for: a thread that is still
    in C++ when the interpreter ends takes the process down. A second Ctrl-C ends the process.

    Args:
        work: What to run; it should look at `cancelled` now and then.
        cancelled: Set by Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        BaseException: Whatever `work` raises.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return work()  # Ctrl-C is not ours to handle
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)  # which `result` raises again

    def stop(_number: int, _frame: object) -> None:
        cancelled.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, stop)
    try:
        threading.Thread(target=run, name="engine build", daemon=True).start()
        result = outcome.result()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if cancelled.is_set():
        raise KeyboardInterrupt
    return result
