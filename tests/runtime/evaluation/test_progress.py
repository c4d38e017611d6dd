import io

import pytest

from atp_runtime.evaluation.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(stream, clock: Clock, answered, *, seconds: float, before: int = 0, total: int = 8) -> None:
    earlier = [answered(f"before {n}", score=1.0) for n in range(before)]
    progress = Progress(total, earlier, stream, clock)
    for number in range(total - before):
        clock.now += seconds
        progress.answered(answered(str(number), score=0.0))
    progress.end()


def test_line_changes_on_a_terminal_and_stays_at_the_end(answered) -> None:
    stream = Terminal()
    run(stream, Clock(), answered, seconds=1.0, before=4)
    lines = stream.getvalue().split("\r")[1:]
    assert [line.split(",")[0] for line in lines] == ["5/8", "6/8", "7/8", "8/8"]
    assert lines[0].strip() == "5/8, score 80.0 %, 1.00 questions/s, 3 s left"
    assert stream.getvalue().endswith("\n")


def test_line_comes_every_half_minute_and_at_the_end_when_it_is_no_terminal(answered) -> None:
    stream = io.StringIO()
    run(stream, Clock(), answered, seconds=12.0)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == ["3/8", "6/8", "8/8"]
    assert "1 min 00 s left" in stream.getvalue()


def test_nothing_is_said_when_there_is_nowhere_to(answered) -> None:
    run(None, Clock(), answered, seconds=100.0)


def test_score_is_left_out_when_no_truth_is_known(answered) -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(2, [], stream, clock)
    clock.now += 2
    progress.answered(answered("1", score=None))
    assert stream.getvalue().strip() == "1/2, 0.50 questions/s, 2 s left"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (12, "12 s"), (60, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_duration_is_told_in_two_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told
