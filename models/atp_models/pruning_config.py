"""`pruning_config.json`: where a checkpoint prunes visual tokens, and how.

The file lies beside the weights. ATP-LLaVA (arXiv 2412.00447) published neither code nor
weights, and where its text is silent or its re-implementations disagree there is a field
here; those are marked "reconstructed", and their defaults are this project's choice.

Models import nothing of the other rooms but the foundations without dependencies of their
own: `atp_runtime.errors`, and here `atp_runtime.schema`, which reads declared JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from atp_models.json_files import read_json, write_json
from atp_runtime.errors import InputError
from atp_runtime.schema import from_json, to_json

FILE_NAME = "pruning_config.json"
STRUCTURE = "structure"
"""Field of the file that is not about which tokens go, see `atp_models.structure`."""
SCHEMA_VERSION = 1
DEPTH_FRACTIONS = (0.125, 0.4375, 0.75)
_CHOICES = {
    "rule": ("atp",),
    "redundancy": ("both", "self", "cross", "none"),
    "normalisation": ("min_max", "none"),
    "self_scores": ("pre_softmax",),
    "features": ("summary",),
    "positions": ("original",),
}


@dataclass(frozen=True)
class PruningConfig:
    """Everything about pruning that is not a weight.

    Attributes:
        layers: The decoder layers (0-indexed) that pruned tokens no longer enter, rising.
        schema_version: Of the file.
        rule: What decides, "atp".
        redundancy: What S_red is made of: "both" scores, (S_self + S_cross) / 2; or, as in
            the paper's ablations, "self" or "cross" alone, or "none", which turns the
            redundancy criterion off.
        lambda_sample: In S_sp = 1 - lambda_sample * R, how fast a denser grid loses score.
        strides: Reconstructed: the sampling grids, nested, each of rate R = 1 / stride^2; a
            token takes the sparsest it lies on. An empty list turns the spatial criterion off.
        normalisation: Reconstructed: "min_max" scales both scores of an image to 0..1 before
            they meet a threshold, "none" leaves them as the attention gives them.
        self_scores: Reconstructed: S_self is averaged before the softmax, where the mean over
            visual queries is one product; the only choice of this version.
        features: Reconstructed: the thresholds see statistics of fixed width of both scores,
            so that a module does not depend on how many tokens are left; the only choice.
        positions: Reconstructed: survivors keep their "original" position ids; the
            two-dimensional rotary embedding the paper mentions is defined nowhere.
        min_keep: At least so many tokens of an image stay; the paper has no such floor.
        max_keep: At most so many do; None is no bound, as in the paper.
        temperature_start: Reconstructed: of the soft mask when training begins. Inference
            uses no temperature.
        temperature_end: Reconstructed: when training ends; sources name 10 and 100.
        target_tokens: N_target, visual tokens averaged over all decoder layers.
        lambda_target: Weight of the distance to N_target in the loss.
        lambda_atp: Reconstructed: weight of the token count in the loss; sources name 0.05
            and 0.01.
    """

    layers: tuple[int, ...]
    schema_version: int = SCHEMA_VERSION
    rule: str = "atp"
    redundancy: str = "both"
    lambda_sample: float = 3.0
    strides: tuple[int, ...] = (2, 4, 8)
    normalisation: str = "min_max"
    self_scores: str = "pre_softmax"
    features: str = "summary"
    positions: str = "original"
    min_keep: int = 0
    max_keep: int | None = None
    temperature_start: float = 10.0
    temperature_end: float = 100.0
    target_tokens: int = 144
    lambda_target: float = 0.2
    lambda_atp: float = 0.05

    def __post_init__(self) -> None:
        problem = _layers_problem(self.layers) or self._rule_problem()
        problem = problem or self._bounds_problem() or self._loss_problem()
        if problem:
            raise ValueError(problem)

    def _rule_problem(self) -> str | None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                return f"{name} {value!r} is not known, it may be {' or '.join(choices)}"
        if not math.isfinite(self.lambda_sample):
            return f"lambda_sample is {self.lambda_sample}, it must be finite"
        if any(a >= b for a, b in pairwise((0, *self.strides))):
            return f"strides {list(self.strides)} must be positive and rise"
        if self.redundancy == "none" and not self.strides:
            return "redundancy 'none' needs strides: without either criterion nothing decides"
        return None

    def _bounds_problem(self) -> str | None:
        if self.min_keep < 0:
            return f"min_keep is {self.min_keep}, it must be 0 or more"
        if self.max_keep is not None and self.max_keep < self.min_keep:
            return f"max_keep {self.max_keep} is below min_keep {self.min_keep}"
        return None

    def _loss_problem(self) -> str | None:
        if not 0 < self.temperature_start <= self.temperature_end < math.inf:
            return "temperatures must be positive and temperature_end not below temperature_start"
        for name in ("target_tokens", "lambda_target", "lambda_atp"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                return f"{name} is {value}, it must be 0 or more"
        return None

    def rule_parameters(self) -> dict[str, Any]:
        """What the rule needs to know on the device: a pruning point's parameters."""
        return {
            "redundancy": self.redundancy,
            "lambda_sample": self.lambda_sample,
            "strides": list(self.strides),
            "normalisation": self.normalisation,
            "min_keep": self.min_keep,
            "max_keep": self.max_keep,
        }


def default_layers(depth: int) -> tuple[int, ...]:
    """Where the paper would prune a decoder of `depth` layers: (4, 14, 24) of 32.

    Its fractions of the depth, 12.5 %, 43.75 % and 75 %, rounded to the nearest layer (a half
    up) and held within 1..depth-1. Points that fall together are one, so decoders of fewer
    than four layers get fewer points, and one of a single layer none.
    """
    if depth < 2:
        return ()
    rounded = (math.floor(depth * fraction + 0.5) for fraction in DEPTH_FRACTIONS)
    return tuple(sorted({min(max(layer, 1), depth - 1) for layer in rounded}))


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Refuses pruning points that a decoder of `depth` layers cannot have.

    Raises:
        InputError: A point is 0 (no attention was computed yet to score tokens by), not
            inside the decoder, repeated or out of order.
    """
    problem = _layers_problem(layers)
    if problem is None and layers and layers[-1] >= depth:
        problem = f"layer {layers[-1]} is beyond the decoder, whose last is {depth - 1}"
    if problem:
        possible = f"1 to {depth - 1}" if depth > 1 else "none, as it has a single layer"
        raise InputError(
            f"pruning before layers {', '.join(map(str, layers))}: {problem}",
            why=f"a decoder of {depth} layers can be cut before layers {possible}.",
            fix="name each layer once, in rising order and within that range.",
        )


def _layers_problem(layers: Sequence[int]) -> str | None:
    if layers and min(layers) < 1:
        return f"layer {min(layers)} has no layer before it whose attention scores the tokens"
    for before, after in pairwise(layers):
        if before == after:
            return f"layer {after} is named twice"
        if before > after:
            return f"layer {after} stands after layer {before}"
    return None


def read_pruning_config(checkpoint: Path) -> PruningConfig | None:
    """The configuration of a checkpoint directory; None if it has none, or a structure alone.

    Raises:
        InputError: The file is not JSON, of another version, or malformed; the message names
            the field.
    """
    file = checkpoint / FILE_NAME
    if not file.exists():
        return None
    value = {name: found for name, found in read_json(file).items() if name != STRUCTURE}
    if not value:
        return None
    version = value.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{file}: schema version {version!r}",
            why=f"this atp-llava reads version {SCHEMA_VERSION}.",
            fix="install the atp-llava that wrote the checkpoint.",
        )
    return from_json(
        PruningConfig, value, source=str(file), fix="correct the file, or remove it for defaults."
    )


def write_pruning_config(config: PruningConfig, checkpoint: Path) -> None:
    """Writes `pruning_config.json` into a checkpoint directory."""
    write_json(checkpoint / FILE_NAME, to_json(config))
