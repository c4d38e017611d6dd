"""Exact match: the answer is the truth, but for case, spaces and final punctuation."""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.evaluation.keys.key import Mark

_FINAL = ".!?,;: "


def normalised(answer: str) -> str:
    """An answer in lower case, with single spaces and without final punctuation."""
    return " ".join(answer.casefold().split()).rstrip(_FINAL)


@dataclass(frozen=True)
class ExactMatch:
    """One right answer.

    Attributes:
        truth: The answer; None if it is not known.
    """

    truth: str | None

    def mark(self, answer: str) -> Mark:
        """1 if the answer is the truth; an empty one is read as nothing."""
        read = normalised(answer)
        score = None if self.truth is None else float(read == normalised(self.truth))
        return Mark(read or None, score)
