"""What a latency model answers, and the sums that budgets and deadlines take of it.

Two models answer: `atp_runtime.latency.predictor` from shapes and a device's data sheet, and
`atp_runtime.latency.table` from what was measured. All times are wall time in seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from atp_runtime.manifest import Manifest


@dataclass(frozen=True)
class Entering:
    """The tokens that enter a segment.

    Attributes:
        text: Those that are not visual.
        visual: Those that are; a structure spares them work.
    """

    text: int
    visual: int = 0

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.text + self.visual


class Latency(ABC):
    """Times of one bundle's stages on one device.

    Attributes:
        spread: The 95th percentile of a whole prefill over its median, 1 or more.
    """

    spread: float = 1.0

    @abstractmethod
    def stage(self, name: str, tokens: int, visual: int = 0) -> float:
        """The median of one run of a stage; it does not fall as `tokens` grows.

        Args:
            name: The stage's.
            tokens: New positions; of the vision stage, the features of one image. A projector
                that is a stage of its own is counted there.
            visual: Of the new positions of a segment, the visual ones.
        """

    @abstractmethod
    def between(self, tokens: int) -> float:
        """What the host takes at a pruning point that `tokens` tokens of the sequence reach."""


def segments_seconds(
    manifest: Manifest, latency: Latency, entering: Sequence[Entering], *, begin: int = 0
) -> float:
    """From the entry of a segment to the logits: segments, pruning points and head.

    Args:
        manifest: The bundle's.
        latency: Its times.
        entering: What enters segment `begin` and each one behind it.
        begin: The first segment's number.
    """
    seconds = sum(latency.stage(stage.name, 1) for stage in manifest.heads)
    for stage, it in zip(manifest.segments[begin:], entering, strict=True):
        seconds += latency.stage(stage.name, it.tokens, it.visual)
        seconds += latency.between(it.tokens) if stage.pruning else 0.0
    return seconds


def first_token_seconds(
    manifest: Manifest, latency: Latency, entering: Sequence[Entering], images: int
) -> float:
    """From pixels to the first token's logits; reading and resizing photos is not in it.

    Args:
        manifest: The bundle's.
        latency: Its times.
        entering: What enters each segment.
        images: How many run through the vision stage.
    """
    vision = images * latency.stage("vision", manifest.vision.tokens)
    return vision + segments_seconds(manifest, latency, entering)
