"""What an answer key is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Mark:
    """How an answer was marked.

    Attributes:
        read: What the answer was taken for, such as a letter; None if for nothing.
        score: 0 (wrong) to 1 (right); None if the truth is not known.
    """

    read: str | None
    score: float | None


class AnswerKey(Protocol):
    """Marks the answers to one question."""

    @property
    def truth(self) -> str | None:
        """The right answer, the commonest one of several; None if it is not known."""
        ...

    def mark(self, answer: str) -> Mark:
        """Reads and marks an answer."""
        ...
