from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable

import pytest

from atp_export.progress import BarReporter, LineReporter, QuietReporter, make_reporter

SCRIPT = """
from atp_export.progress import make_reporter
reporter = make_reporter(quiet={quiet})
with reporter.waiting("vision: tracing"):
    pass
with reporter.task("vision", 3_000_000) as advance:
    for _ in range(3):
        advance(1_000_000)
reporter.note("a [note]")
"""


def on_a_terminal(quiet: bool) -> str:
    """What the script shows where standard error is a terminal."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(quiet=quiet)],
        stderr=terminal,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            block = os.read(controller, 4096)
        except OSError:  # the terminal is closed on the other side
            break
        if not block:
            break
        shown += block
    os.close(controller)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert output == b""
    return shown.decode()


def test_a_terminal_gets_bars_with_sizes_and_speed() -> None:
    shown = on_a_terminal(quiet=False)
    assert "vision: tracing" in shown
    assert "━" in shown
    assert "3.0/3.0 MB" in shown
    assert "B/s" in shown
    assert "a [note]" in shown


def test_a_quiet_terminal_stays_empty() -> None:
    assert on_a_terminal(quiet=True) == ""


def test_a_pipe_gets_plain_lines_on_standard_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(quiet=False)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("vision: 3.0 MB in ")
    assert second == "a [note]"
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("make", [QuietReporter, LineReporter, BarReporter])
def test_an_error_passes_through_every_reporter(make: Callable[[], QuietReporter]) -> None:
    reporter = make()
    with pytest.raises(KeyError), reporter.task("title", 10):
        raise KeyError
    with pytest.raises(KeyError), reporter.waiting("title"):
        raise KeyError


def test_unfinished_work_is_not_reported_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), LineReporter().task("vision", 10):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_quiet_comes_before_everything_else() -> None:
    assert isinstance(make_reporter(quiet=True), QuietReporter)
