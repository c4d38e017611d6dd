"""Yes or no, as POPE reads answers (arXiv 2305.10355)."""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.evaluation.keys.key import Mark


def read_yes_no(answer: str) -> str | None:
    """What an answer says: "no" if its first sentence has a no or not, else "yes" if it has a yes.

    None if it says neither.
    """
    words = answer.partition(".")[0].lower().replace(",", " ").replace("!", " ").split()
    if "no" in words or "not" in words:
        return "no"
    return "yes" if "yes" in words else None


@dataclass(frozen=True)
class YesNo:
    """A question that is answered by yes or no.

    Attributes:
        truth: "yes" or "no".
    """

    truth: str

    def mark(self, answer: str) -> Mark:
        """1 if the answer is right; one that is neither counts as yes, as in POPE's own code."""
        read = read_yes_no(answer)
        return Mark(read, float((read or "yes") == self.truth))
