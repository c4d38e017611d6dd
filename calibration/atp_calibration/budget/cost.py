"""What a sample costs, from how many of its tokens are left at each pruning point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atp_calibration.budget.target import FIRST_TOKEN, SPEEDUP, TOKENS, Target
from atp_runtime.errors import InputError
from atp_runtime.latency.model import (
    Entering,
    Latency,
    first_token_seconds,
    segments_seconds,
)
from atp_runtime.manifest import Manifest
from atp_runtime.statistics import mean_visual_tokens, run_flops


@dataclass(frozen=True)
class Size:
    """How long a sample is.

    Attributes:
        images: It is about.
        text: Tokens that are not visual.
    """

    images: int
    text: int


class Cost:
    """Charges samples what a target counts.

    Args:
        manifest: The bundle's.
        target: What counts.
        latency: The device's times; without, a speedup is one of arithmetic.

    Raises:
        InputError: The target is a time and there is no latency.
    """

    def __init__(self, manifest: Manifest, target: Target, latency: Latency | None) -> None:
        if target.kind == FIRST_TOKEN and latency is None:
            raise InputError(
                "a time to first token without a device",
                why="nothing says how long a token takes.",
                fix="name it, as in --device orin-nano-8gb, or give --latency-table FILE.",
            )
        self._manifest = manifest
        self._target = target
        self._latency = latency

    def __call__(self, size: Size, kept: Sequence[float]) -> float:
        """The cost of one sample.

        Args:
            size: The sample's.
            kept: Visual tokens of all its images that are left behind each pruning point.
        """
        visual = size.images * self._manifest.vision.most_tokens
        left = entering_segments(self._manifest, visual, kept)
        if self._target.kind == TOKENS:
            return mean_visual_tokens(self._manifest, left) / size.images
        entering = [Entering(size.text, count) for count in left]
        if self._target.kind == SPEEDUP:
            return self._prefill(entering) / self._prefill(
                [Entering(size.text, visual)] * len(left)
            )
        assert self._latency is not None  # noqa: S101 - refused above
        return first_token_seconds(self._manifest, self._latency, entering, size.images)

    def _prefill(self, entering: Sequence[Entering]) -> float:
        if self._latency:
            return segments_seconds(self._manifest, self._latency, entering)
        stages = zip(self._manifest.segments, entering, strict=True)
        return float(
            sum(run_flops(self._manifest, stage, it.tokens, 0, it.visual) for stage, it in stages)
        )


def entering_segments(manifest: Manifest, visual: int, kept: Sequence[float]) -> list[int]:
    """Visual tokens that enter each segment.

    Args:
        manifest: The bundle's.
        visual: Those of the prompt.
        kept: Those left behind each pruning point, rounded here.
    """
    left, alive, entering = iter(kept), visual, []
    for stage in manifest.segments:
        entering.append(alive)
        if stage.pruning:
            alive = round(next(left))
    return entering
