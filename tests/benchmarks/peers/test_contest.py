import sys
from pathlib import Path

import pytest
from tests.benchmarks.peers.contest import (
    Case,
    Contestant,
    DriverError,
    Task,
    agreeing,
    ask,
    read_answer,
    reason,
    run_rounds,
)
from tests.benchmarks.peers.contestants import OUR_COMMAND, PEERS, peer_environment

TASK = Task(threads=1, new_tokens=3, check=(5, 6, 7), check_tokens=4)
ANSWER = """a library's greeting
@@ {"load_seconds": 1.5, "versions": {"library": "1.0"}}
no end of line@@ {"check": [1, 2]}
@@ {"case": 0, "first_token": 0.5, "later": [0.1, 0.2], "peak_bytes": 3}
"""


def contestant(program: str, name: str = "one") -> Contestant:
    command = (sys.executable, "-c", program)
    return Contestant(name, "fp32", command, {}, "model", 1, (Case(0, 2, (1, 2)),))


def test_answer_is_read_from_between_what_libraries_print() -> None:
    answer = read_answer(ANSWER)

    assert answer.load_seconds == 1.5
    assert answer.versions == {"library": "1.0"}
    assert answer.check == (1, 2)
    assert [(it.first_token, it.later, it.peak_bytes) for it in answer.timed] == [
        (0.5, (0.1, 0.2), 3)
    ]


def test_answer_without_its_check_is_refused() -> None:
    with pytest.raises(DriverError, match="check"):
        read_answer(ANSWER.replace("check", "other"))


@pytest.mark.parametrize(
    ("code", "errors", "expected"),
    [
        (1, "Traceback\nValueError: no such model\n\n", "ValueError: no such model"),
        (-9, "", "was killed, as happens when memory is short"),
        (-11, "loading\n", "crashed (signal 11): loading"),
        (1, "", "it said nothing"),
    ],
)
def test_reason_says_how_a_driver_ended(code: int, errors: str, expected: str) -> None:
    assert reason(code, errors) == expected


def test_tokens_agree_up_to_the_first_that_differs() -> None:
    assert agreeing((1, 2, 3), (1, 2, 3)) == 3
    assert agreeing((1, 9, 3), (1, 2, 3)) == 1


def test_contestants_take_turns_and_one_that_fails_is_not_asked_again() -> None:
    heard: list[str] = []
    good = contestant(f"print({ANSWER!r})", "good")
    bad = contestant("raise SystemExit('it cannot')", "bad")

    answers, failed = run_rounds([good, bad], TASK, 2, heard.append)

    assert heard == [
        "round 1 of 2: good, fp32",
        "round 1 of 2: bad, fp32",
        "round 2 of 2: good, fp32",
    ]
    assert len(answers[good]) == 2
    assert failed == {bad: "it cannot"}


def test_an_interpreter_that_is_not_there_is_a_reason() -> None:
    absent = Contestant("one", "fp32", ("/no/such/python",), {}, "model", 1, ())

    with pytest.raises(DriverError, match="/no/such/python"):
        ask(absent, TASK)


@pytest.mark.slow
def test_runtime_answers_as_transformers_does(tmp_path: Path, tiny_dense) -> None:
    ids = tuple(range(100, 140))
    task = Task(threads=1, new_tokens=5, check=ids, check_tokens=12)
    cases = (Case(0, 20, ids[:20]), Case(0, 40, ids))
    ours, theirs = (
        Contestant(
            name, "fp32", command, peer_environment(ours=is_ours, threads=1), str(path), 1, cases
        )
        for name, is_ours, command, path in (
            ("ours", True, OUR_COMMAND, tiny_dense.bundle),
            ("theirs", False, PEERS[0].command, tiny_dense.decoder),
        )
    )

    answers = [ask(it, task) for it in (ours, theirs)]

    assert answers[0].check == answers[1].check
    for answer in answers:
        assert answer.load_seconds > 0
        assert [len(it.later) for it in answer.timed] == [4, 4]
        assert answer.timed[0].peak_bytes <= answer.timed[1].peak_bytes
