"""What can be answered without looking: the floor that a model's scores stand on.

A few answerers learn from the training questions and see no image. For each kind of question
the best of them on the very test set counts, so the floor is rather too high than too low.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from atp_models.demo.scenes.questions import Question

_SEEN_ENOUGH = 8  # times a question was met in training before its own answers are trusted
_CHOICE = re.compile(r"Which is .+, the (?P<first>.+) or the (?P<second>.+)\?")

Answerer = Callable[[Question], str | None]


@dataclass(frozen=True)
class KindBaseline:
    """How well one kind of question is answered without the image.

    Attributes:
        questions: In the test set.
        accuracy: Of the best answerer, 0 to 1.
        best: Its name.
        answerers: Accuracy of each that has an answer to such questions, by name.
    """

    questions: int
    accuracy: float
    best: str
    answerers: Mapping[str, float]


@dataclass(frozen=True)
class Baseline:
    """How well a test set is answered without its images.

    Attributes:
        trained_on: Questions that the answerers learnt from.
        accuracy: Over all questions, each kind by its best answerer.
        kinds: By kind, in alphabetical order.
    """

    trained_on: int
    accuracy: float
    kinds: Mapping[str, KindBaseline]


def question_only_baseline(training: Sequence[Question], test: Sequence[Question]) -> Baseline:
    """Score the best answers that questions alone allow.

    Args:
        training: Questions with answers to learn from, of every kind in `test`.
        test: Questions to answer, at least one.
    """
    answerers = _fit(training)
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in test:
        by_kind[question.kind].append(question)
    kinds = {kind: _score(answerers, by_kind[kind]) for kind in sorted(by_kind)}
    right = sum(kind.accuracy * kind.questions for kind in kinds.values())
    return Baseline(len(training), right / len(test), kinds)


def _fit(training: Sequence[Question]) -> dict[str, Answerer]:
    of_kind: dict[str, Counter[str]] = defaultdict(Counter)
    of_text: dict[str, Counter[str]] = defaultdict(Counter)
    for question in training:
        of_kind[question.kind][question.answer] += 1
        of_text[question.text][question.answer] += 1

    def usual(question: Question) -> str | None:
        return of_kind[question.kind].most_common(1)[0][0]

    def usual_for_question(question: Question) -> str | None:
        answers = of_text.get(question.text, Counter())
        seen_enough = sum(answers.values()) >= _SEEN_ENOUGH
        return answers.most_common(1)[0][0] if seen_enough else usual(question)

    return {
        "most frequent answer of the kind": usual,
        "most frequent answer to the very question": usual_for_question,
        "first of the two named": lambda question: _named(question, "first"),
        "second of the two named": lambda question: _named(question, "second"),
    }


def _named(question: Question, which: str) -> str | None:
    choice = _CHOICE.fullmatch(question.text)
    return choice[which] if choice else None


def _score(answerers: Mapping[str, Answerer], test: Sequence[Question]) -> KindBaseline:
    accuracy = {
        name: sum(answer(question) == question.answer for question in test) / len(test)
        for name, answer in answerers.items()
        if any(answer(question) is not None for question in test)
    }
    best = max(accuracy, key=lambda name: accuracy[name])
    return KindBaseline(len(test), accuracy[best], best, accuracy)
