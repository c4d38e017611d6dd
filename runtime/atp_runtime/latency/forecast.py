"""What a bundle would do on a device that need not be there."""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.latency.device import Device
from atp_runtime.latency.memory import SYSTEM_BYTES, largest_build, run_needs
from atp_runtime.latency.model import Entering, first_token_seconds
from atp_runtime.latency.predictor import PredictedLatency
from atp_runtime.manifest import Manifest
from atp_runtime.token_flow import tokens_entering

ERROR_BAND = 0.3
"""Share by which a predicted time may be off: a little more than the worst of the published times
that the efficiencies were not fitted to (docs/budgets.md)."""


@dataclass(frozen=True)
class Counts:
    """The tokens of a prompt.

    Attributes:
        images: It is about.
        text: Tokens that are not visual.
        kept: Visual tokens left behind each pruning point.
    """

    images: int
    text: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Forecast:
    """Of one device.

    Attributes:
        device: Its name.
        first_token_seconds: From pixels to the first token's logits.
        tokens_per_second: Behind it.
        stages: Seconds of each stage's prefill; the vision stage's of one image.
        run_bytes: Memory that running takes.
        build_bytes: Memory that building the largest engine takes.
        runs: Whether it has the former.
        builds: Whether it has the latter.
    """

    device: str
    first_token_seconds: float
    tokens_per_second: float
    stages: dict[str, float]
    run_bytes: int
    build_bytes: int
    runs: bool
    builds: bool


def forecast(manifest: Manifest, device: Device, counts: Counts) -> Forecast:
    """Predicts by `PredictedLatency`.

    Args:
        manifest: The bundle's.
        device: Where it would run.
        counts: What it would be asked; decoding is that of the first token behind it.
    """
    latency = PredictedLatency(manifest, device)
    entering = _entering(manifest, counts)
    usable = int(device.memory_gb * 2**30) - SYSTEM_BYTES
    run, build = run_needs(manifest).total, largest_build(manifest)
    stages = {"vision": latency.stage("vision", manifest.vision.tokens)}
    stages |= {
        stage.name: latency.stage(stage.name, it.tokens, it.visual)
        for stage, it in zip(manifest.segments, entering, strict=True)
    }
    stages |= {stage.name: latency.stage(stage.name, 1) for stage in manifest.heads}
    return Forecast(
        device.name,
        first_token_seconds(manifest, latency, entering, counts.images),
        1 / latency.decode_step([it.tokens for it in entering]),
        stages,
        run,
        build,
        runs=run <= usable,
        builds=build <= usable,
    )


def _entering(manifest: Manifest, counts: Counts) -> list[Entering]:
    """What enters each segment."""
    left = iter(counts.kept)
    most = counts.images * manifest.vision.most_tokens
    visual = tokens_entering(manifest.segments, most, lambda _point, _alive: next(left))
    return [Entering(counts.text, it) for it in visual]
