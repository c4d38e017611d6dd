"""The rules that thin out an image's tokens before the decoder sees them, by the manifest's names.

A rule is the frozen dataclass of its parameters. From what the vision stage gives for one image it
says which tokens there will be: features that stay, and such that are averages of several. The
decoder gets them as a shorter sequence, in the order they are listed here.

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

from atp_runtime.errors import InputError
from atp_runtime.tensor_names import CLASS_ATTENTION

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
    """

    place: IndexArray
    mixing: Matrix | None = None

    def __len__(self) -> int:
        return len(self.place)

    def of(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The tokens [kept, width] that it makes of features [tokens, width], in their dtype."""
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


@dataclass(frozen=True)
class ClassAttention(VisionRule):
    """The tokens that the class token attends to most (FasterVLM, arXiv 2412.01818).

    Attributes:
        keep: How many.
    """

    needs = (CLASS_ATTENTION,)
    keep: int

    def __post_init__(self) -> None:
        check_count("keep", self.keep)

    def reduce(self, given: Given) -> Reduction:
        """Keeps `keep`, in their order."""
        return Reduction(_best(given[CLASS_ATTENTION].astype(np.float64), self.keep))

    def most(self, tokens: int) -> int:
        """`keep`."""
        return min(self.keep, tokens)


VISION_RULES: Mapping[str, type[VisionRule]] = {
    "class_attention": ClassAttention,
}


def vision_rule(name: str) -> type[VisionRule]:
    """The rule that a manifest calls by this name.

    Raises:
        InputError: There is none; the message names the known ones.
    """
    if name in VISION_RULES:
        return VISION_RULES[name]
    raise InputError(
        f"unknown rule {name!r} behind the vision tower",
        why=f"this runtime knows {', '.join(VISION_RULES)}.",
        fix="install the atp-llava that wrote the bundle, or export it again.",
    )


def check_count(name: str, value: int) -> None:
    """Refuses a number of tokens below 1: an image must leave a trace in the prompt.

    Raises:
        ValueError: It is.
    """
    if value < 1:
        raise ValueError(f"{name} is {value}, it must be 1 or more")


def _best(scores: Matrix, count: int) -> IndexArray:
    """Places of the highest scores, of equal ones the earlier, rising: int64 [count]."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
