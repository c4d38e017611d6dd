"""Scores from sums over records, against counting by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from atp_models.training.evaluation import join_results, row_results
from atp_models.training.records import Record, Turn
from atp_models.training.soft_state import SoftOutput

TURNS = (Turn("user", "Q"), Turn("assistant", "A"))


def record(kind: str) -> Record:
    return Record(kind, (Path("x.png"),), TURNS, kind, kind)


def output(right: list[bool], mean: list[float], counts: list[list[float]]) -> SoftOutput:
    """Four classes, the target is 1; its logit is log 3 above the others', or theirs above it."""
    targets = torch.ones(len(right), dtype=torch.int64)
    logits = torch.zeros(len(right), 4)
    logits[:, 1] = torch.where(torch.tensor(right), math.log(3), -1.0)
    nothing = torch.zeros(())
    return SoftOutput(
        loss=nothing,
        lm_loss=nothing,
        atp_loss=nothing,
        target_loss=nothing,
        counts=torch.tensor(counts),
        mean_tokens=torch.tensor(mean),
        masks=torch.zeros(len(counts), len(mean), 1),
        logits=logits,
        targets=targets,
        images=torch.ones(len(mean), dtype=torch.int64),
    )


# Two rows: answers of 2 and 1 tokens; one answer of 2 tokens. The third place is not supervised.
TARGETS = torch.tensor([[1, 1, -100, 1], [-100, 1, 1, -100]])
ANSWERS = torch.tensor([[0, 0, -1, 1], [-1, 0, 0, -1]])


def results(right: list[bool], numbers: tuple[int, int] = (0, 1)) -> torch.Tensor:
    found = output(right, mean=[20.0, 30.0], counts=[[8.0, 6.0], [2.0, 4.0]])
    return row_results(found, TARGETS, ANSWERS, torch.tensor(numbers), torch.tensor([2, 1]))


def test_an_answer_is_right_when_all_of_its_tokens_are() -> None:
    scores = join_results(results([True, False, True, True, True]), [record("a"), record("b")])

    assert scores.token_accuracy == pytest.approx(4 / 5)
    assert scores.answer_accuracy == pytest.approx(2 / 3)
    assert {kind: score.accuracy for kind, score in scores.kinds.items()} == {"a": 0.5, "b": 1.0}
    assert {kind: score.answers for kind, score in scores.kinds.items()} == {"a": 2, "b": 1}


def test_loss_is_the_mean_over_all_tokens() -> None:
    scores = join_results(results([True] * 5), [record("a"), record("a")])
    assert scores.loss == pytest.approx(math.log(2))  # softmax of log 3 among three zeros


def test_tokens_are_per_image() -> None:
    scores = join_results(results([True] * 5), [record("a"), record("b")])
    assert scores.mean_tokens == pytest.approx((2 * 20 + 30) / 3)
    assert scores.kept == pytest.approx((14 / 3, 6 / 3))
    assert scores.kinds["b"].mean_tokens == pytest.approx(30)


def test_records_that_were_computed_twice_count_once() -> None:
    once = results([True, False, True, True, True], (4, 2))
    again = results([True] * 5, (7, 4))[1:]
    records = [record(str(number)) for number in range(8)]

    scores = join_results(torch.cat((again, once)), records)

    assert scores.records == 2
    assert sorted(scores.kinds) == ["2", "4"]
    assert scores.answer_accuracy == pytest.approx(2 / 3)


def test_a_row_without_answers_counts_as_none() -> None:
    found = output([True] * 3, mean=[20.0, 30.0], counts=[[8.0, 6.0]])
    targets = TARGETS.clone()
    targets[1] = -100
    rows = row_results(found, targets, ANSWERS, torch.tensor([0, 1]), torch.tensor([1, 0]))
    scores = join_results(rows, [record("a"), record("b")])
    assert scores.kinds["b"].answers == 0
    assert scores.answer_accuracy == 1.0
    assert scores.mean_tokens == 20.0
