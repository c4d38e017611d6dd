"""Ends an answer where a stop string appears in its text."""

from __future__ import annotations

from collections.abc import Sequence

from atp_runtime.errors import InputError


class StopStrings:
    """Passes streamed text on until the first stop string is complete.

    The stop string itself is not passed on, so whatever could be the beginning of one waits until
    it is decided. Of stop strings that end at the same character, the longest counts. How the text
    is cut into pieces makes no difference.

    Args:
        strings: What ends the answer; may be empty.

    Attributes:
        stopped: Whether a stop string has appeared.

    Raises:
        InputError: One of the strings is empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if "" in strings:
            raise InputError(
                "a stop string is empty",
                why="it would end every answer before its first character",
                fix="leave it out, or give the text that should end the answer",
            )
        self.stopped = False
        self._strings = tuple(strings)
        self._held = ""

    def push(self, piece: str) -> str:
        """What may be shown after this piece of the answer; nothing once it has stopped."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(start + len(it), start) for it in self._strings if (start := text.find(it)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        certain = len(text) - self._undecided(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was still waiting when the answer ended by itself."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of the text that a stop string could begin with."""
        longest = max((len(it) - 1 for it in self._strings), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(it.startswith(text[-length:]) for it in self._strings):
                return length
        return 0
