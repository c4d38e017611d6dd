"""What a rule before the decoder is: from what the vision stage gives for an image to its tokens.

All rules compute in float64 and break ties by giving the earlier feature preference. Axis names:
`tokens` features of the image, `kept` those that are left.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
Given = Mapping[str, npt.NDArray[Any]]
"""Outputs of the vision stage for one image, by name, without the axis of images."""

NOWHERE = -1
"""Place of a token that was made of several features and lies nowhere."""


@dataclass(frozen=True, eq=False)
class Reduction:
    """What is left of an image.

    Attributes:
        place: int64 [kept]: the feature whose place on the photo a token has, or `NOWHERE`.
        mixing: float64 [kept, tokens]: the share of each feature in each token; None where a token
            is the feature at its place.
        inside: The tokens were made inside the tower: its features are they.
    """

    place: IndexArray
    mixing: Matrix | None = None
    inside: bool = False

    def __len__(self) -> int:
        return len(self.place)

    def of(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The tokens [kept, width] that it makes of features [tokens, width], in their dtype."""
        if self.inside:
            return features
        if self.mixing is None:
            return features[self.place]
        return (self.mixing @ features.astype(np.float64)).astype(features.dtype)


@dataclass(frozen=True)
class VisionRule(abc.ABC):
    """What a rule is.

    Attributes:
        needs: Outputs of the vision stage that it decides by.
    """

    needs: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def reduce(self, given: Given) -> Reduction:
        """What is left of an image of which `needs` are given."""

    @abc.abstractmethod
    def most(self, tokens: int) -> int:
        """How many of an image's tokens are left at most."""


def check_count(name: str, value: int) -> None:
    """Refuses a number of tokens below 1: an image must leave a trace in the prompt.

    Raises:
        ValueError: It is.
    """
    if value < 1:
        raise ValueError(f"{name} is {value}, it must be 1 or more")


def best(scores: Matrix, count: int) -> IndexArray:
    """Places of the highest scores, of equal ones the earlier, rising: int64 [count]."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def units(rows: npt.NDArray[Any]) -> Matrix:
    """Rows scaled to length 1; a row of zeros stays one: float64 [rows, width]."""
    wide: Matrix = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    scaled: Matrix = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    return scaled
