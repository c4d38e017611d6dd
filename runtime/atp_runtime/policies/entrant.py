"""What is compared: a policy with its settings, as it is written on a command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from atp_runtime.errors import InputError

DENSE, ATP = "dense", "atp"
"""Nothing is pruned; the checkpoint's own modules prune."""
_FIX = "write policies as in: dense atp fastv:layer=2:ratio=0.75 topk:keep=140,50:layers=4,13."


@dataclass(frozen=True)
class Entrant:
    """A policy that takes part.

    Attributes:
        policy: `DENSE`, `ATP`, or what `atp-export --policy` takes.
        settings: What `atp-export --set` takes.
    """

    policy: str
    settings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Entrant:
        """Reads "NAME" or "NAME:SETTING=VALUE:...".

        Raises:
            InputError: It has another form.
        """
        policy, *settings = text.split(":")
        plain = policy in (DENSE, ATP) and settings
        if not policy or plain or not all(re.fullmatch(r"[\w.]+=[^=]+", it) for it in settings):
            why = f"{policy} has no settings." if plain else "that is no policy with settings."
            raise InputError(f"--policies {text}", why=why, fix=_FIX)
        return cls(policy, tuple(settings))

    def __str__(self) -> str:
        return " ".join([self.policy, *self.settings])

    @property
    def directory(self) -> str:
        """A name for its files."""
        return re.sub(r"[^\w.,=+-]", "_", "_".join([self.policy, *self.settings]))

    def words(self) -> list[str]:
        """What `atp-export` is told."""
        if self.policy == DENSE:
            return ["--dense"]
        if self.policy == ATP:
            return []
        return ["--policy", self.policy, *(it for name in self.settings for it in ("--set", name))]


def read_entrants(texts: Sequence[str]) -> tuple[Entrant, ...]:
    """Reads all that take part.

    Raises:
        InputError: One has another form, there are fewer than two, or two are the same.
    """
    entrants = tuple(Entrant.parse(text) for text in texts)
    if len(entrants) < 2:
        raise InputError(
            f"--policies {' '.join(texts)}", why="a comparison needs at least two.", fix=_FIX
        )
    if len(set(entrants)) < len(entrants):
        raise InputError(
            f"--policies {' '.join(texts)}",
            why="one of them is there twice.",
            fix="name each once.",
        )
    return entrants
