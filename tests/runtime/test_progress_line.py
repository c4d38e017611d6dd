"""Progress: one line that changes on a terminal, a line now and then in a log."""

from __future__ import annotations

import io

from atp_runtime.progress_line import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_and_a_shorter_text_covers_the_longer() -> None:
    stream = Terminal()
    line = ProgressLine(stream, 0.0)
    line.tell("9/10, 1 s left")
    line.tell("done")
    shown = stream.getvalue().split("\r")
    assert shown == ["", "9/10, 1 s left", "done          "]


def test_a_terminal_is_told_five_times_a_second_and_a_log_twice_a_minute() -> None:
    for stream, pause in ((Terminal(), 0.2), (io.StringIO(), 30.0)):
        line = ProgressLine(stream, 0.0)
        assert not line.is_due(pause / 2, last=False)
        assert line.is_due(pause, last=False)
        assert not line.is_due(pause * 1.5, last=False)
        assert line.is_due(pause * 1.5, last=True)


def test_what_stays_stands_on_a_line_of_its_own() -> None:
    stream = Terminal()
    line = ProgressLine(stream, 0.0)
    line.tell("1/2")
    line.note("a photo was skipped")
    line.tell("2/2")
    line.end()
    assert stream.getvalue() == "\r1/2\na photo was skipped\n\r2/2\n"


def test_without_a_stream_nothing_is_said_and_nothing_breaks() -> None:
    line = ProgressLine(None, 0.0)
    line.tell("1/2")
    line.note("skipped")
    line.end()
