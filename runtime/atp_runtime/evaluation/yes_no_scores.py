"""POPE's numbers: accuracy, precision, recall, F1 and how often the answer is yes."""

from __future__ import annotations

from collections.abc import Sequence

from atp_runtime.evaluation.accuracy import by_kind
from atp_runtime.evaluation.answer_log import AnsweredQuestion
from atp_runtime.evaluation.keys.exact_match import normalised
from atp_runtime.evaluation.keys.yes_no import read_yes_no
from atp_runtime.evaluation.report import YesNoScores


def yes_no_scores(answers: Sequence[AnsweredQuestion]) -> tuple[YesNoScores, ...]:
    """The numbers of all questions with the truth yes or no, and of each kind."""
    binary = [it for it in answers if normalised(it.truth or "") in ("yes", "no")]
    return tuple(_scores(kind, part) for kind, part in by_kind(binary).items())


def _scores(kind: str, answers: Sequence[AnsweredQuestion]) -> YesNoScores:
    readings = [read_yes_no(it.answer) for it in answers]
    said = [reading != "no" for reading in readings]
    true = [normalised(it.truth or "") == "yes" for it in answers]
    hits = sum(a and b for a, b in zip(said, true, strict=True))
    precision = hits / sum(said) if any(said) else None
    recall = hits / sum(true) if any(true) else None
    return YesNoScores(
        kind,
        len(answers),
        accuracy=sum(a == b for a, b in zip(said, true, strict=True)) / len(answers),
        precision=precision,
        recall=recall,
        f1=_harmonic_mean(precision, recall),
        yes_rate=sum(said) / len(said),
        neither=readings.count(None),
    )


def _harmonic_mean(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0
