"""`--select`: prunes by another rule than the bundle's own, to compare rules on one bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atp_runtime.conversation import Model
from atp_runtime.errors import InputError
from atp_runtime.evaluation.baselines import KeepChosen, random_tokens, uniform_tokens
from atp_runtime.manifest import Manifest
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selectors, SelectTokens, VisualTokens
from atp_runtime.workspace import Scorer

OWN = "bundle"
_TOP_K: Mapping[str, str] = {"cross": "cross", "self": "self", "both": "mean", "last_row": "cross"}
_FREE = (OWN, "keep_all")
RULES: Mapping[str, str] = {
    OWN: "the bundle's own rule",
    "keep_all": "nothing is pruned",
    "random": "random tokens, others for each question",
    "uniform": "an even grid",
    "cross": "the highest cross scores",
    "self": "the highest self scores",
    "both": "the highest mean of both scores",
    "last_row": "the highest attention of the prompt's last token (FastV)",
}


@dataclass(frozen=True)
class PruningChoice:
    """A rule, and how many tokens it keeps.

    Attributes:
        rule: A key of `RULES`.
        keep: Tokens of an image that stay at each pruning point; empty for rules that say so
            themselves.

    Raises:
        InputError: The rule needs the numbers and has none, or the other way round.
    """

    rule: str = OWN
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rule in _FREE and self.keep:
            raise InputError(
                f"--keep with the rule {self.rule}",
                why="that rule says itself how many tokens stay.",
                fix="leave --keep away, or choose another rule with --select.",
            )
        if self.rule not in _FREE and not self.keep:
            raise InputError(
                f"--select {self.rule} without --keep",
                why="the rule keeps a fixed number of tokens at each pruning point.",
                fix="give the numbers, such as --keep 120,70,34.",
            )

    def apply(self, model: Model, seed: int) -> Callable[[str], SelectTokens]:
        """Prepares the model; returns what selects its tokens, by question id.

        Args:
            model: Of an open session.
            seed: Of the random rule.

        Raises:
            InputError: The numbers do not fit the bundle's pruning points.
        """
        manifest = model.manifest
        points = [stage.pruning for stage in manifest.segments if stage.pruning]
        if self.rule == OWN:
            own = model.select
            return lambda _question: own
        if self.rule == "keep_all":
            everything = Selectors.keeping_all(manifest)
            return lambda _question: everything
        self._check(points, manifest.vision.most_tokens)
        keep = {point.before_layer: it for point, it in zip(points, self.keep, strict=True)}
        if self.rule in _TOP_K:
            self._check_attention(points)
            # Whatever the bundle's own points ask.
            model.decoder.scorer = last_row if self.rule == "last_row" else Scorer.for_sequence
            best = _top_k(keep, _TOP_K[self.rule])
            return lambda _question: best
        return self._blind(manifest, keep, seed)

    def _blind(
        self, manifest: Manifest, keep: Mapping[int, int], seed: int
    ) -> Callable[[str], SelectTokens]:
        if self.rule == "uniform":
            grid = KeepChosen(keep, uniform_tokens(*manifest.vision.grid))
            return lambda _question: grid
        return lambda question: KeepChosen(keep, random_tokens(_generator(seed, question)))

    def _check_attention(self, points: Sequence[PruningPoint]) -> None:
        routed = next((point.before_layer for point in points if point.returns), None)
        if routed is not None:
            raise InputError(
                f"--select {self.rule}",
                why=f"what goes through layer {routed} is ranked by its router, not by attention.",
                fix=f"choose {OWN}, keep_all, random or uniform.",
            )

    def _check(self, points: Sequence[PruningPoint], tokens: int) -> None:
        if len(points) != len(self.keep):
            layers = ", ".join(str(point.before_layer) for point in points) or "none"
            raise InputError(
                f"--keep has {len(self.keep)} numbers",
                why=f"the bundle prunes before layers {layers}: {len(points)} numbers.",
                fix="give one number per pruning point.",
            )
        # What skips a routed layer comes back, so that later points may keep more.
        gone = [it for point, it in zip(points, self.keep, strict=True) if not point.returns]
        falling = gone == sorted(gone, reverse=True)
        if not falling or max(self.keep, default=0) > tokens or min(self.keep, default=0) < 0:
            raise InputError(
                f"--keep {','.join(map(str, self.keep))}",
                why=f"an image has {tokens} tokens, and what is pruned does not come back.",
                fix=f"give numbers from {tokens} to 0 that do not rise.",
            )


def last_row(visual: VisualTokens, tokens: int, behind: int) -> Scorer:
    """Asks the last text token alone; see `Scorer.for_sequence`."""
    return Scorer.for_sequence(visual, tokens, behind).last_row()


def _top_k(keep: Mapping[int, int], score: str) -> Selectors:
    points = (
        PruningPoint(layer, "top_k", {"keep": count, "score": score})
        for layer, count in keep.items()
    )
    return Selectors(points, {})


def _generator(seed: int, question: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{question}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
