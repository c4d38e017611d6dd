"""What an answer's time is told to consist of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atp_runtime.errors import InputError
from atp_runtime.profiling.timed_turn import DECODE, PREFILL, Question, TimedTurn, TurnTimer
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selectors
from atp_runtime.session import Session

NEW_TOKENS = 5
EVERYTHING = Selectors([PruningPoint(layer, "keep_all", {}) for layer in (2, 3)], {})


@pytest.fixture(scope="module")
def session(answering: Path) -> Iterator[Session]:
    with Session.open(answering, threads=1) as opened:
        yield opened


@pytest.fixture
def question(photo: Path) -> Question:
    return Question("what is it", (photo,))


@pytest.fixture
def turn(session: Session, question: Question) -> TimedTurn:
    return TurnTimer(session.model, NEW_TOKENS).run(question, session.model.select)


def entering(turn: TimedTurn, phase: str) -> dict[str, int | None]:
    return {span.name: span.entering for span in turn.spans if span.phase == phase}


def test_the_parts_add_up_to_the_answer(turn: TimedTurn) -> None:
    assert sum(span.seconds for span in turn.spans) == pytest.approx(turn.answer_seconds)
    first = sum(span.seconds for span in turn.spans if span.phase != DECODE)
    assert first == pytest.approx(turn.first_token_seconds)
    assert all(span.seconds >= 0 for span in turn.spans)


def test_every_stage_and_every_point_is_told_in_the_order_they_run(turn: TimedTurn) -> None:
    assert [span.name for span in turn.spans if span.phase == PREFILL] == [
        "embed and splice",
        "segment_0",
        "select before 2",
        "segment_1",
        "select before 3",
        "segment_2",
        "head",
        "hand over",
        "sample",
    ]


def test_tokens_are_those_that_an_answer_keeps(
    session: Session, question: Question, turn: TimedTurn
) -> None:
    answer = session.ask(question.prompt, question.images)
    text = answer.statistics.prompt_tokens - answer.statistics.visual_tokens
    found = entering(turn, PREFILL)
    counts = [found[f"segment_{number}"] for number in range(3)]
    assert counts == [text + kept for kept in (64, 16, 4)]
    assert turn.visual_tokens == answer.statistics.mean_visual_tokens


def test_a_rule_that_keeps_all_runs_all_again(session: Session, question: Question) -> None:
    timer = TurnTimer(session.model, NEW_TOKENS)
    for _ in range(2):  # a second time, caches could serve the question
        found = entering(timer.run(question, EVERYTHING), PREFILL)
        assert found["segment_0"] == found["segment_2"]
        assert (found["segment_2"] or 0) > 64


def test_answers_are_as_long_as_was_asked_for(session: Session, question: Question) -> None:
    for tokens in (1, 20):
        turn = TurnTimer(session.model, tokens).run(question, session.model.select)
        assert turn.steps == tokens - 1
        decoded = [span for span in turn.spans if span.phase == DECODE]
        assert {span.calls for span in decoded} == ({tokens - 1} if tokens > 1 else set())


def test_answers_that_would_differ_in_length_are_refused(
    session: Session, question: Question
) -> None:
    with pytest.raises(InputError, match="--new-tokens"):
        TurnTimer(session.model, 90).run(question, session.model.select)


def test_caches_hold_the_prompt_that_is_left_and_the_answer(turn: TimedTurn) -> None:
    found = entering(turn, PREFILL)
    prompt = [found[f"segment_{number}"] or 0 for number in range(3)]
    assert list(turn.cached) == [count + turn.steps for count in prompt]


def test_decoding_reads_one_position_more_each_time(turn: TimedTurn) -> None:
    prompt = entering(turn, PREFILL)["segment_0"] or 0
    span = next(it for it in turn.spans if (it.phase, it.name) == (DECODE, "segment_0"))
    assert span.past == sum(prompt + step for step in range(NEW_TOKENS - 1))
