"""Pruning policies that need no training: where, by which rule, whom the scorer asks.

Those before the decoder are in `atp_export.vision_policies`. Each is written from its paper. A
policy is a frozen dataclass of its settings; adding one is a class and a line in `POLICIES`. The
graphs are the same for all: their scorers give two scores per token, and what becomes of them is
the runtime's business.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atp_models.pruning_config import PruningConfig, default_layers
from atp_runtime.errors import InputError
from atp_runtime.manifest import LAST, TEXT, PruningPoint
from atp_runtime.schema import from_json

_FIX = "see docs/policies.md for the policies and their settings."


class Policy(ABC):
    """Where and how visual tokens are dropped."""

    @abstractmethod
    def points(self, depth: int) -> tuple[PruningPoint, ...]:
        """The pruning points of a decoder.

        Args:
            depth: Its layers.
        """


@dataclass(frozen=True)
class FastV(Policy):
    """FastV (arXiv 2403.06764): once, by the attention of the prompt's last token.

    Attributes:
        layer: K; tokens are dropped before it, by the attention of the layer before.
        ratio: R, the share of the visual tokens that is dropped.
    """

    layer: int = 2
    ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_share("ratio", self.ratio)

    def points(self, depth: int) -> tuple[PruningPoint, ...]:  # noqa: ARG002 - a layer is a layer
        """One point."""
        return (_by_last_token(self.layer, 1 - self.ratio),)


@dataclass(frozen=True)
class PyramidDrop(Policy):
    """PyramidDrop (arXiv 2410.17247): step by step, by the attention of the last token.

    Its code computes that attention anew with the projections of the layer that follows; here it is
    that of the layer before the point.

    Attributes:
        ratio: The share of those still there that stays at each point.
        layers: Where; None is a quarter, a half and three quarters of the depth.
    """

    ratio: float = 0.5
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_share("ratio", self.ratio)

    def points(self, depth: int) -> tuple[PruningPoint, ...]:
        """Three points, unless layers are given."""
        layers = self.layers or tuple(depth * quarter // 4 for quarter in (1, 2, 3))
        return tuple(_by_last_token(layer, self.ratio) for layer in layers)


@dataclass(frozen=True)
class Vtw(Policy):
    """VTW (arXiv 2405.05803): all visual tokens leave at once.

    Attributes:
        layer: K; None is 15 of 32, as in the paper for 7B, at this depth. The paper finds it by the
            change of the output on samples.
    """

    layer: int | None = None

    def points(self, depth: int) -> tuple[PruningPoint, ...]:
        """One point."""
        layer = max(depth * 15 // 32, 1) if self.layer is None else self.layer
        return (PruningPoint(layer, "keep_none", {}),)


@dataclass(frozen=True)
class TopK(Policy):
    """The best tokens by a score, as many as is said: a rule to compare others with.

    Attributes:
        keep: How many stay at each point; None keeps half of those that are left.
        layers: Where; None is where ATP-LLaVA prunes.
        score: "self", "cross" or "mean", see `atp_runtime.pruning_rules.TopK`.
        queries: Whose attention "cross" is: of all "text" behind the image, or of its "last" token.
    """

    keep: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    score: str = "mean"
    queries: str = TEXT

    def __post_init__(self) -> None:
        if self.score not in ("self", "cross", "mean"):
            raise ValueError(f"score {self.score!r} is none of self, cross, mean")
        if self.queries not in (TEXT, LAST):
            raise ValueError(f"queries {self.queries!r} are neither {TEXT!r} nor {LAST!r}")
        if self.keep is not None and list(self.keep) != sorted(self.keep, reverse=True):
            raise ValueError(f"keep {list(self.keep)} rises: dropped tokens do not come back")

    def points(self, depth: int) -> tuple[PruningPoint, ...]:
        """A point per layer."""
        layers = self.layers or default_layers(depth)
        counts: Sequence[int | None] = self.keep or (None,) * len(layers)
        if len(counts) != len(layers):
            raise InputError(
                f"keep has {len(counts)} numbers for {len(layers)} layers",
                why="each pruning point needs one.",
                fix=_FIX,
            )
        return tuple(
            PruningPoint(layer, "top_k", self._parameters(count), queries=self.queries)
            for layer, count in zip(layers, counts, strict=True)
        )

    def _parameters(self, count: int | None) -> dict[str, Any]:
        how_many = {"ratio": 0.5} if count is None else {"keep": count}
        return {**how_many, "score": self.score}


POLICIES: Mapping[str, type[Policy]] = {
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "vtw": Vtw,
    "topk": TopK,
}


def make_policy(name: str, settings: Mapping[str, Any], source: str) -> Policy:
    """A policy with its settings; what is not set is as its paper has it.

    Args:
        name: A key of `POLICIES`.
        settings: By the names of its attributes, as JSON values.
        source: Where they come from, for messages.

    Raises:
        InputError: There is no such policy or setting, or a value makes no sense.
    """
    if name not in POLICIES:
        raise InputError(
            f"{source}: unknown policy {name!r}",
            why=f"the policies that need no training are {', '.join(POLICIES)}.",
            fix=f"{_FIX[:-1]}; without --policy, ATP's modules decide.",
        )
    return from_json(POLICIES[name], dict(settings), source=f"{source}, policy {name}", fix=_FIX)


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings from a command line: "ratio=0.75", "layers=8,16,24", "score=cross".

    Raises:
        InputError: A word has another form.
    """
    settings = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise InputError(
                f"--set {word}", why="it must be NAME=VALUE.", fix="write it as in ratio=0.75."
            )
        settings[name] = _value(text)
    return settings


def atp_points(config: PruningConfig) -> tuple[PruningPoint, ...]:
    """The points of a checkpoint with ATP modules."""
    return tuple(
        PruningPoint(layer, config.rule, config.rule_parameters(), f"points.{number}.")
        for number, layer in enumerate(config.layers)
    )


def _value(text: str) -> Any:
    if "," in text:
        return [_value(part) for part in text.split(",")]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _by_last_token(layer: int, share: float) -> PruningPoint:
    return PruningPoint(layer, "top_k", {"ratio": share, "score": "cross"}, queries=LAST)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, it must be from 0 to 1")
