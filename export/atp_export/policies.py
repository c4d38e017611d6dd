"""Pruning policies: where, by which rule, whom the scorer asks.

All but `VideoLlmMod` need no training. Those before the decoder are in
`atp_export.vision_policies`. Each is written from its paper. A policy is a frozen dataclass of its
settings; adding one is a class and a line in `POLICIES`. The graphs are the same for all that rank
by attention: their scorers give two scores per token, and what becomes of them is the runtime's
business.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from atp_models.pruning_config import PruningConfig, default_layers
from atp_models.structure import make_structure
from atp_runtime import registered
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import LAST, QUERIES, RATERS, TEXT, PruningPoint
from atp_runtime.schema import from_json
from atp_runtime.structure import FAST, Structure
from atp_runtime.top_k_rules import SCORES

_FIX = "see docs/policies.md for the policies and their settings."


@dataclass(frozen=True)
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
class ILlava(Policy):
    """iLLaVA (arXiv 2412.06263), what it does in the decoder: once, the rest merged into one token.

    By the attention of the prompt's last token; that which weighs the rest, too.

    Attributes:
        layer: Tokens are merged before it; None is 8 of 32, as in the paper, at this depth.
        ratio: The share of the visual tokens of an image that is merged.
    """

    layer: int | None = None
    ratio: float = 0.3

    def __post_init__(self) -> None:
        _check_share("ratio", self.ratio)

    def points(self, depth: int) -> tuple[PruningPoint, ...]:
        """One point."""
        layer = max(depth // 4, 1) if self.layer is None else self.layer
        parameters = {"ratio": 1 - self.ratio, "score": "cross"}
        return (PruningPoint(layer, "merge_rest", parameters, queries=LAST, merges=True),)


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
        score: One of `SCORES`, see `atp_runtime.top_k_rules.TopK`.
        queries: Whose attention "cross" is, see `atp_runtime.pruning_point.PruningPoint`.
    """

    keep: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    score: str = "mean"
    queries: str = TEXT

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score {self.score!r} is none of {', '.join(SCORES)}")
        if self.queries not in QUERIES:
            raise ValueError(f"queries {self.queries!r} is none of {', '.join(QUERIES)}")
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


@dataclass(frozen=True)
class RandomTokens(TopK):
    """Any tokens, others for each image: what every rule must beat."""

    score: str = "random"


@dataclass(frozen=True)
class UniformGrid(TopK):
    """Tokens that lie evenly on the image, the same for all questions."""

    score: str = "grid"


@dataclass(frozen=True)
class SparseVlm(TopK):
    """SparseVLM (arXiv 2410.04417): by what the words that resemble the image attend to.

    The paper's counts are of 576 tokens.

    Attributes:
        keep: How many stay at each point; None is the paper's 300, 200 and 110.
        redundant: Instead of `keep`, the paper's lambda: the share that is dropped of those tokens
            that are more than the rank of what the raters pay them.
        recycle: Whether some more are made of the best of the others, see
            `atp_runtime.top_k_rules.Recycle`.
        layers: Where; None is behind the paper's layers 2, 6 and 15 of 32, at this depth.
        score: Its own.
        queries: Its raters.
    """

    score: str = "cross"
    queries: str = RATERS
    redundant: float | None = None
    recycle: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.redundant is not None:
            _check_share("redundant", self.redundant)
            if self.keep is not None:
                raise ValueError("keep and redundant both say how many tokens stay")

    def points(self, depth: int) -> tuple[PruningPoint, ...]:
        """A point per layer; the paper's that fall together are one."""
        usual = sorted({min(max(round(depth * at / 32), 1), depth - 1) for at in (3, 7, 16)})
        layers = self.layers or tuple(usual)
        if self.redundant is None:
            keep = self.keep or (300, 200, 110)[-len(layers) :]
            points = TopK(keep, layers, self.score, self.queries).points(depth)
        else:
            by_rank = {"redundant": self.redundant, "score": self.score}
            points = tuple(
                PruningPoint(layer, "top_k", by_rank, queries=self.queries, rows=True)
                for layer in layers
            )
        if not self.recycle:
            return points
        return tuple(replace(point, rule="recycle", merges=True) for point in points)


@dataclass(frozen=True)
class Yopo(Policy):
    """YOPO (arXiv 2410.06169): visual tokens are spared work in every layer, then leave.

    Attributes:
        window: See `atp_runtime.structure.Structure`, as are the next two.
        heads: A file of booleans [layers, heads], relative to the checkpoint; None keeps all.
        ffn_ratio: As the paper's 25 % configurations have it.
        cut_layer: None is half of the depth, the depth itself is never.
        mode: "fast" or "masked".
    """

    window: int | None = 5
    heads: str | None = None
    ffn_ratio: int = 2
    cut_layer: int | None = None
    mode: str = FAST

    def points(self, depth: int) -> tuple[PruningPoint, ...]:  # noqa: ARG002 - the plan adds the cut
        """None: where visual tokens leave is the structure's."""
        return ()

    def structure(self, depth: int, checkpoint: Path) -> Structure:
        """What visual tokens are spared."""
        cut = max(1, depth // 2) if self.cut_layer is None else self.cut_layer
        settings = {**vars(self), "cut_layer": None if cut == depth else cut}
        return make_structure(settings, checkpoint, "--set, policy yopo")


@dataclass(frozen=True)
class VideoLlmMod(Policy):
    """VideoLLM-MoD (arXiv 2408.16730): in some layers a learned router lets the rest skip.

    Attributes:
        layers: Those that are routed; each has a router in the checkpoint, see
            `atp_models.routers`.
        ratio: Which share of an image's visual tokens goes through each; either this or `keep`.
        keep: How many do.
    """

    layers: tuple[int, ...]
    ratio: float | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.ratio is None):
            raise ValueError("exactly one of keep and ratio must be given")
        if self.keep is not None and self.keep < 0:
            raise ValueError(f"keep is {self.keep}, it must be 0 or more")
        if self.ratio is not None:
            _check_share("ratio", self.ratio)
        if not self.layers:
            raise ValueError("layers is empty, and there is nothing to route without")

    def points(self, depth: int) -> tuple[PruningPoint, ...]:  # noqa: ARG002 - a layer is a layer
        """A point before each routed layer."""
        how_many = {"ratio": self.ratio} if self.keep is None else {"keep": self.keep}
        # A router gives one score, which stands for both of attention's.
        parameters = {**how_many, "score": "self"}
        return tuple(PruningPoint(it, "top_k", parameters, returns=True) for it in self.layers)


POLICIES: Mapping[str, type[Policy]] = {
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVlm,
    "illava": ILlava,
    "vtw": Vtw,
    "topk": TopK,
    "random": RandomTokens,
    "uniform": UniformGrid,
    "yopo": Yopo,
    "videollm_mod": VideoLlmMod,
}


def policy_names() -> list[str]:
    """Of all policies, those of other packages last."""
    return [*POLICIES, *registered.registered_names(registered.POLICIES)]


def make_policy(name: str, settings: Mapping[str, Any], source: str) -> Policy:
    """A policy with its settings; what is not set is as its paper has it.

    Args:
        name: A key of `POLICIES`, or what another package registers.
        settings: By the names of its attributes, as JSON values.
        source: Where they come from, for messages.

    Raises:
        InputError: There is no such policy or setting, or a value makes no sense.
    """
    kind: type[Policy] | None = POLICIES.get(name)
    kind = kind or registered.load_registered(registered.POLICIES, name, Policy)
    if kind is None:
        raise InputError(
            f"{source}: unknown policy {name!r}",
            why=f"the policies are {', '.join(policy_names())}.",
            fix=f"{_FIX[:-1]}; without --policy, ATP's modules decide.",
        )
    source = f"{source}, policy {name}"
    policy: Policy = from_json(kind, as_lists(kind, settings), source=source, fix=_FIX)
    return policy


def as_lists(kind: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a policy, a list of one having been written like a number: --set keep=64."""
    lists = {it.name for it in fields(kind) if "tuple" in str(it.type)}
    return {
        key: [given] if key in lists and not isinstance(given, list | None) else given
        for key, given in settings.items()
    }


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
