from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from atp_export.engines.monitor import PhaseBars, run_interruptibly


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_work_gives_its_result() -> None:
    assert run_interruptibly(lambda: 7, threading.Event()) == 7


def test_failures_of_the_work_are_raised() -> None:
    def fail() -> None:
        raise ValueError("what went wrong")

    with pytest.raises(ValueError, match="what went wrong"):
        run_interruptibly(fail, threading.Event())


def test_work_that_never_returns_to_python_is_interrupted_all_the_same() -> None:
    """The main thread sees Ctrl-C while another sits in one long call."""
    cancelled, ended = threading.Event(), threading.Event()

    def work() -> None:
        cancelled.wait(20)  # as a builder, which looks at it between two steps
        ended.set()

    interrupt_after(0.1)
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work, cancelled)
    assert ended.is_set()
    assert time.perf_counter() - start < 10


def test_an_interruption_that_comes_too_late_is_one_all_the_same() -> None:
    cancelled = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(lambda: os.kill(os.getpid(), signal.SIGINT), cancelled)


def test_afterwards_ctrl_c_is_python_s_again() -> None:
    run_interruptibly(lambda: None, threading.Event())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interruption_ends_the_process() -> None:
    script = (
        "import threading\n"
        "from atp_export.engines.monitor import run_interruptibly\n"
        "cancelled = threading.Event()\n"
        "def work():\n"
        "    print('working', flush=True)\n"
        "    cancelled.wait()\n"
        "    print('stopping', flush=True)\n"
        "    threading.Event().wait(60)\n"
        "run_interruptibly(work, cancelled)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for expected in ("working\n", "stopping\n"):
        assert process.stdout.readline() == expected
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT


def test_elsewhere_than_in_the_main_thread_work_is_just_done() -> None:
    done: list[int] = []
    thread = threading.Thread(
        target=lambda: done.append(run_interruptibly(lambda: 7, threading.Event()))
    )
    thread.start()
    thread.join()
    assert done == [7]


def test_phases_are_bars_below_one_another_and_go_away() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    with PhaseBars("segment_[0]", console) as bars:
        bars.phase_started("Building engine", None, 6)
        bars.phase_started("Timing tactics", "Building engine", 40)
        bars.step_done("Timing tactics", 24)
        bars._progress.refresh()
        during = shown.getvalue()
        bars.phase_ended("Timing tactics")
        bars.phase_ended("Building engine")
    assert "segment_[0]: Building engine" in during
    assert "  Timing tactics" in during
    assert "25/40" in during
    assert bars._bars == {}


def test_phases_deep_down_are_not_drawn() -> None:
    shown = io.StringIO()
    with PhaseBars("head", Console(file=shown, force_terminal=True, width=120)) as bars:
        parent = None
        for depth in range(8):
            bars.phase_started(f"phase {depth}", parent, 2)
            bars.step_done(f"phase {depth}", 0)
            parent = f"phase {depth}"
        bars._progress.refresh()
    assert "phase 3" in shown.getvalue()
    assert "phase 4" not in shown.getvalue()


def test_unknown_phases_are_ignored() -> None:
    with PhaseBars("head", Console(file=io.StringIO())) as bars:
        bars.step_done("never started", 1)
        bars.phase_ended("never started")
