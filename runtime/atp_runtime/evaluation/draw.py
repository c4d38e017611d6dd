"""Which questions are asked, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from atp_runtime.evaluation.question import ImageReference, Question


def draw(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """A random sample, or all; questions that only count together are drawn together.

    The first half of a file is seldom like the second: a sample of its beginning would mislead.

    Args:
        questions: All.
        limit: How many are to be counted; None is all.
        seed: Another one draws others. With the same one, more questions are these and others.

    Returns:
        The sample, in the order of `questions`.
    """
    units = list(dict.fromkeys(question.unit for question in questions))
    if limit is None or limit >= len(units):
        return list(questions)
    drawn = set(sorted(units, key=lambda unit: _lot(unit, seed))[:limit])
    return [question for question in questions if question.unit in drawn]


def by_image(questions: Sequence[Question]) -> list[Question]:
    """Questions about the same images behind one another, otherwise in the same order."""
    groups: dict[tuple[ImageReference, ...], list[Question]] = {}
    for question in questions:
        groups.setdefault(question.images, []).append(question)
    return [question for group in groups.values() for question in group]


def _lot(unit: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{unit}".encode()).digest()
