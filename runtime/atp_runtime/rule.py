"""What a selection rule is: from one image's scores to who stays, and what becomes of the others.

A rule is the frozen dataclass of its parameters; `prepare` gives the pure function from one
image's scores to a `Verdict`: how much the rule wants each token, and how many of them; and what it
makes of the others, if it does not just drop them.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from atp_runtime import atp
from atp_runtime.merges import IndexArray, Shares


@dataclass(frozen=True)
class ImageScores:
    """What a rule sees of one image, n >= 1 visual tokens in the sequence's order.

    Attributes:
        own: `scores.self`, float32 [n].
        cross: `scores.cross`, float32 [n]; 0 when no text follows the image.
        has_text: Whether any text follows.
        row: int64 [n], the row of the patch, -1 without a place on the grid.
        column: int64 [n], likewise.
        hidden: Gives the hidden states [n, hidden] that leave the layer, which costs a download;
            None where scores are all there is.
        attention: Gives the attention [rows, n] of each asked token, likewise.
    """

    own: npt.NDArray[np.float32]
    cross: npt.NDArray[np.float32]
    has_text: bool
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    hidden: Callable[[], npt.NDArray[np.float32]] | None = None
    attention: Callable[[], npt.NDArray[np.float32]] | None = None

    def normalised(self, how: str = "min_max") -> tuple[atp.Vector, atp.Vector]:
        """Both scores [n], scaled; cross scores are 0 without text."""
        own = atp.normalise(self.own, how)
        return own, atp.normalise(self.cross, how) if self.has_text else np.zeros_like(own)

    def mean(self) -> atp.Vector:
        """S_red [n]."""
        own, cross = self.normalised()
        return atp.redundancy_scores(own, cross, has_text=self.has_text)


Merge = Callable[[IndexArray, int], Shares]
"""From the tokens that do not stay (int64, rising) and a number, at most theirs, that many tokens
made of them: float64 [number, n], the share of each token; no token is in two."""


@dataclass(frozen=True)
class Verdict:
    """What a rule wants for one image.

    Attributes:
        priority: float64 [n]; the tokens of highest priority stay.
        count: How many go on, before `min_keep` and `max_keep`.
        idle: What the user should hear when that is all of them.
        measured: What the rule computed on the way, by name.
        note: What the user should hear in any case.
        merged: How many of the `count` are made of the tokens that do not stay.
        merge: How; None of a rule that drops them.
    """

    priority: atp.Vector
    count: int
    idle: str
    measured: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None
    merged: int = 0
    merge: Merge | None = None


Decide = Callable[[ImageScores], Verdict]


@dataclass(frozen=True)
class Rule(abc.ABC):
    """Parameters that every rule has.

    Attributes:
        min_keep: At least so many tokens of an image stay, or all it has left.
        max_keep: At most so many do; None is no bound.
        merges: Whether it makes tokens of others; such count as staying.
    """

    merges: ClassVar[bool] = False

    min_keep: int = 0
    max_keep: int | None = None

    @property
    def reads_rows(self) -> bool:
        """Whether it asks for `ImageScores.attention`."""
        return False

    def __post_init__(self) -> None:
        if self.min_keep < 0:
            raise ValueError(f"min_keep is {self.min_keep}, it must be 0 or more")
        if self.max_keep is not None and self.max_keep < self.min_keep:
            raise ValueError(f"max_keep {self.max_keep} is below min_keep {self.min_keep}")

    @abc.abstractmethod
    def prepare(self, weights: Mapping[str, atp.AtpWeights], prefix: str | None, /) -> Decide:
        """The rule as a function, with its weights looked up.

        Args:
            weights: All the bundle's, by prefix.
            prefix: The point's own.

        Raises:
            InputError: The rule needs weights that are not there.
        """


class FixedRule(Rule):
    """A rule that learns nothing."""

    def prepare(self, _weights: Mapping[str, atp.AtpWeights], _prefix: str | None, /) -> Decide:
        """Needs no weights."""
        return self.decide

    @abc.abstractmethod
    def decide(self, image: ImageScores) -> Verdict:
        """What the rule wants for one image."""
