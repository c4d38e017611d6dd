"""Scores by kind of question, with what a constant answer would get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from atp_runtime.evaluation.answer_log import AnsweredQuestion
from atp_runtime.evaluation.intervals import mean_score
from atp_runtime.evaluation.keys.exact_match import normalised
from atp_runtime.evaluation.report import Accuracy

ALL = "all"
T = TypeVar("T")


def accuracies(answers: Sequence[AnsweredQuestion]) -> tuple[Accuracy, ...]:
    """The score of all questions and of each kind, kinds by name; nothing if none has a truth."""
    known = [it for it in answers if it.score is not None]
    return tuple(_accuracy(kind, part) for kind, part in by_kind(known).items())


def unit_scores(answers: Iterable[AnsweredQuestion]) -> dict[str, float]:
    """The score of what counts as one, by its name: of a group its lowest."""
    scores: dict[str, float] = {}
    for it in answers:
        if it.score is not None:
            scores[it.group] = min(it.score, scores.get(it.group, 1.0))
    return scores


def by_kind(answers: Sequence[AnsweredQuestion]) -> Mapping[str, list[AnsweredQuestion]]:
    """All, and then each kind, if the data tells any; empty without answers."""
    if not answers:
        return {}
    kinds = sorted({it.kind for it in answers} - {""})
    parts = {kind: [it for it in answers if it.kind == kind] for kind in kinds}
    return {ALL: list(answers), **parts}


def _accuracy(kind: str, answers: Sequence[AnsweredQuestion]) -> Accuracy:
    scores = list(unit_scores(answers).values())
    unread = sum(it.read is None for it in answers)
    return Accuracy(kind, len(scores), mean_score(scores), _constant(answers), unread)


def _constant(answers: Sequence[AnsweredQuestion]) -> float | None:
    """The share of the commonest truth."""
    grouped = any(it.group != it.id for it in answers)
    if grouped or any(it.score not in (0, 1) for it in answers):
        return None
    truths = Counter(normalised(it.truth or "") for it in answers)
    return truths.most_common(1)[0][1] / len(answers)
