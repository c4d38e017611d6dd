"""Tokens that are made of others at a pruning point.

A merged token stands where its heaviest member stood and takes that one's position, so that order
and positions go on rising and no two tokens share one (reconstructed: papers are silent on it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Merges:
    """What a point makes of the n visual tokens of a sequence.

    Attributes:
        place: int64 [merged], rising: the visual token in whose place each stands.
        shares: float64 [merged, n], the share of each visual token in each.
    """

    place: IndexArray
    shares: Shares

    def __len__(self) -> int:
        return len(self.place)

    @classmethod
    def of(cls, shares: Shares) -> Merges:
        """Each in the place of its heaviest member, of equal ones the earlier.

        Args:
            shares: float64 [merged, n]; no two share a member.
        """
        place = np.argmax(shares, axis=1) if shares.size else np.zeros(len(shares), np.int64)
        order = np.argsort(place)
        return cls(place[order], shares[order])

    @classmethod
    def joined(cls, images: Sequence[tuple[IndexArray | slice, Shares]], tokens: int) -> Merges:
        """Those of several images.

        Args:
            images: Where each one's visual tokens are, and shares [merged, its tokens].
            tokens: n, of all images.
        """
        rows = [np.zeros((len(shares), tokens)) for _, shares in images]
        for row, (at, shares) in zip(rows, images, strict=True):
            row[:, at] = shares
        return cls.of(np.concatenate([np.zeros((0, tokens)), *rows]))

    def weights(self, index: IndexArray, tokens: int) -> npt.NDArray[np.float32]:
        """The shares of all tokens of the sequence: float32 [merged, tokens].

        Args:
            index: int64 [n]: where the visual tokens stand.
            tokens: Of the sequence.
        """
        weights = np.zeros((len(self), tokens), dtype=np.float32)
        weights[:, index] = self.shares
        return weights


def weighted_mean(weights: Shares, rest: IndexArray, _count: int, /) -> Shares:
    """One token, the mean of `rest`; where all their weights are 0, all weigh the same.

    Args:
        weights: float64 [n], 0 or more.
        rest: int64, of the n; at least one.

    Returns:
        float64 [1, n].
    """
    shares = np.zeros((1, len(weights)))
    among = weights[rest]
    shares[0, rest] = among / among.sum() if among.any() else 1 / len(rest)
    return shares
