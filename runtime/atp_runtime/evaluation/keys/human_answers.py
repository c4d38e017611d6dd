"""VQA accuracy: how many of the people who were asked gave this answer (arXiv 1505.00468)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from atp_runtime.evaluation.keys.key import Mark
from atp_runtime.evaluation.keys.vqa_text import normalised

_ENOUGH = 3


@dataclass(frozen=True)
class HumanAnswers:
    """What people answered, usually ten.

    Attributes:
        answers: One per person; none if they are not known.
    """

    answers: tuple[str, ...]

    @property
    def truth(self) -> str | None:
        """The answer that most people gave, of equally common ones the first."""
        if not self.answers:
            return None
        return Counter(map(normalised, self.answers)).most_common(1)[0][0]

    def mark(self, answer: str) -> Mark:
        """The mean, over all people, of min(others who gave this answer / 3, 1)."""
        read = normalised(answer)
        score = self._score(read) if self.answers else None
        return Mark(read or None, score)

    def _score(self, read: str) -> float:
        people = len(self.answers)
        same = sum(normalised(answer) == read for answer in self.answers)
        # Whoever is left out gave this answer, and then the others are one fewer, or did not.
        one_of_them, another = min((same - 1) / _ENOUGH, 1), min(same / _ENOUGH, 1)
        return (same * one_of_them + (people - same) * another) / people
