"""Multiple choice: which of the options an answer names, by its letter or by its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase

from atp_runtime.evaluation.keys.exact_match import normalised
from atp_runtime.evaluation.keys.key import Mark

_ALONE = re.compile(r"\(?([A-Za-z])[).:]*")
_IN_FRONT = re.compile(r"\(?([A-Z])[).:]")
_ANNOUNCED = re.compile(r"\b(?i:answer|option|choice)(?: is)?:? *\(?([A-Z])\b")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


@dataclass(frozen=True)
class MultipleChoice:
    """Options, one of which is right.

    Attributes:
        options: Their texts; the first is A.
        letter: The right one's; None if it is not known.
    """

    options: tuple[str, ...]
    letter: str | None

    @property
    def truth(self) -> str | None:
        """The right option's letter."""
        return self.letter

    def mark(self, answer: str) -> Mark:
        """1 if the answer names the right option; one that names none is wrong."""
        read = self.read(answer)
        return Mark(read, None if self.letter is None else float(read == self.letter))

    def read(self, answer: str) -> str | None:
        """The letter an answer names: alone, in front, as "the answer is B", or in brackets.

        Failing all these, the option whose text it is, or the only one whose text is in it.
        """
        text = answer.strip()
        found = _ALONE.fullmatch(text) or _IN_FRONT.match(text)
        letters = {found[1].upper()} if found else set(_ANNOUNCED.findall(text))
        letters |= set(_IN_BRACKETS.findall(text))
        if len(letters) == 1 and letters <= set(ascii_uppercase[: len(self.options)]):
            return str(letters.pop())
        return self._by_text(normalised(text))

    def _by_text(self, text: str) -> str | None:
        options = [normalised(option) for option in self.options]
        for names in (_equals, _contains):
            places = [place for place, option in enumerate(options) if names(text, option)]
            if len(places) == 1:
                return ascii_uppercase[places[0]]
        return None


def _equals(text: str, option: str) -> bool:
    return text == option


def _contains(text: str, option: str) -> bool:
    return bool(option) and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None
