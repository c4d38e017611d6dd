"""The selection rules, by the name that a bundle's manifest calls them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from atp_runtime import atp, registered
from atp_runtime.errors import InputError
from atp_runtime.rule import Decide, FixedRule, ImageScores, Rule, Verdict
from atp_runtime.top_k_rules import MergeRest, Recycle, TopK

_FIX = "export the bundle again with atp-export."


@dataclass(frozen=True)
class Atp(Rule):
    """Learned thresholds with OR (ATP-LLaVA); see `atp_runtime.atp`.

    Attributes:
        redundancy: What S_red is made of, one of `atp.REDUNDANCIES`; "none" turns the
            redundancy criterion off.
        lambda_sample: How fast a denser sampling grid loses score.
        strides: The sampling grids, rising; none turns the spatial criterion off.
        normalisation: "min_max" or "none".
        redundancy_offset: Added to the argument of theta_r's sigmoid, to fit a budget: a higher
            threshold keeps fewer tokens.
        spatial_offset: Likewise of theta_s.
    """

    redundancy: str = "both"
    lambda_sample: float = 3.0
    strides: tuple[int, ...] = (2, 4, 8)
    normalisation: str = "min_max"
    redundancy_offset: float = 0.0
    spatial_offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lambda_sample", "redundancy_offset", "spatial_offset"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}, it must be finite")
        if any(a >= b for a, b in pairwise((0, *self.strides))):
            raise ValueError(f"strides {list(self.strides)} must be positive and rise")
        if self.redundancy not in atp.REDUNDANCIES:
            known = ", ".join(atp.REDUNDANCIES)
            raise ValueError(f"redundancy {self.redundancy!r} is none of {known}")
        if self.redundancy == "none" and not self.strides:
            raise ValueError("redundancy 'none' without strides leaves no criterion")
        if self.normalisation not in atp.NORMALISATIONS:
            known = ", ".join(atp.NORMALISATIONS)
            raise ValueError(f"normalisation {self.normalisation!r} is none of {known}")

    def prepare(self, weights: Mapping[str, atp.AtpWeights], prefix: str | None, /) -> Decide:
        """Looks up the point's module; see `Rule.prepare`."""
        if prefix is None or prefix not in weights:
            raise InputError(
                f"the atp rule has no weights at {prefix!r}",
                why=f"the bundle's ATP modules are {', '.join(weights) or 'none'}.",
                fix=_FIX,
            )
        module = self._shifted(weights[prefix])
        return lambda image: self._decide(image, module)

    def _shifted(self, module: atp.AtpWeights) -> atp.AtpWeights:
        weights, biases = module.heads
        offsets = np.array([self.redundancy_offset, self.spatial_offset])
        return replace(module, heads=(weights, biases + offsets))

    def _decide(self, image: ImageScores, module: atp.AtpWeights) -> Verdict:
        own, cross = image.normalised(self.normalisation)
        attention = float(image.cross.sum(dtype=np.float64)) if image.has_text else 0.0
        theta_r, theta_s = atp.thresholds(atp.score_features(own, cross, attention), module)
        margins = atp.margins(
            atp.redundancy_scores(own, cross, has_text=image.has_text, how=self.redundancy),
            atp.spatial_scores(
                image.row, image.column, lambda_sample=self.lambda_sample, strides=self.strides
            ),
            theta_r=theta_r,
            theta_s=theta_s,
        )
        return Verdict(
            margins,
            int(np.count_nonzero(margins > 0)),
            idle=f"all {len(margins)} tokens are above the thresholds",
            measured={"theta_r": theta_r, "theta_s": theta_s},
            note=self._unmet(image),
        )

    def _unmet(self, image: ImageScores) -> str | None:
        if self.redundancy != "cross" or image.has_text:
            return None
        return "no text follows the image, so its tokens are judged by their self scores"


@dataclass(frozen=True)
class KeepNone(FixedRule):
    """Drops every visual token; `min_keep` spares the best by the mean score."""

    def decide(self, image: ImageScores) -> Verdict:
        """Keeps 0."""
        return Verdict(image.mean(), 0, idle="")


@dataclass(frozen=True)
class KeepAll(FixedRule):
    """Drops nothing; `max_keep` leaves the best by the mean score."""

    def decide(self, image: ImageScores) -> Verdict:
        """Keeps all."""
        tokens = len(image.own)
        return Verdict(image.mean(), tokens, idle=f"all {tokens} tokens stay: the rule is keep_all")


RULES: Mapping[str, type[Rule]] = {
    "atp": Atp,
    "top_k": TopK,
    "merge_rest": MergeRest,
    "recycle": Recycle,
    "keep_none": KeepNone,
    "keep_all": KeepAll,
}


def rule(name: str) -> type[Rule]:
    """The rule that a manifest calls by this name: one of `RULES`, or another package's.

    Raises:
        InputError: There is none; the message names the known ones.
    """
    found: type[Rule] | None = RULES.get(name) or registered.load_registered(
        registered.RULES, name, Rule
    )
    if found is None:
        known = [*RULES, *registered.registered_names(registered.RULES)]
        raise InputError(
            f"unknown pruning rule {name!r}",
            why=f"this runtime knows {', '.join(known)}.",
            fix="install the atp-llava that wrote the bundle, or the package that has the rule; or "
            "export it again.",
        )
    return found
