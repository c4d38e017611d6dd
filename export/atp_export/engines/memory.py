"""Memory that building takes, and what this machine has; arithmetic, no TensorRT needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atp_runtime.latency.memory import build_bytes, weight_bytes
from atp_runtime.manifest import Manifest

# Kernels and tables of an engine beside its weights: TensorRT-RTX 1.7.1 wrote 0.4 to 5.2 MB of
# them for the stages of a tiny model.
PLAN_OVERHEAD = 16 * 2**20


@dataclass(frozen=True)
class StageForecast:
    """What one stage needs, in bytes.

    Attributes:
        stage: Its name.
        weight_bytes: Of its data files.
        build_bytes: Predicted peak while its engine is built.
        fits: Whether this machine has that much available now.
    """

    stage: str
    weight_bytes: int
    build_bytes: int
    fits: bool


@dataclass(frozen=True)
class BuildForecast:
    """All stages, and the memory this machine has available, in bytes."""

    stages: tuple[StageForecast, ...]
    available_bytes: int


def forecast_build(manifest: Manifest, available: int | None = None) -> BuildForecast:
    """Predicts each stage's peak; stages are built one after the other, so peaks do not add up.

    Args:
        manifest: The bundle's.
        available: In bytes; None asks the system.
    """
    free = available_memory() if available is None else available
    stages = []
    for stage in manifest.stages:
        weights = weight_bytes(manifest, stage)
        needed = build_bytes(weights)
        stages.append(StageForecast(stage.name, weights, needed, fits=needed <= free))
    return BuildForecast(tuple(stages), free)


def plan_bytes(weights: int) -> int:
    """Bytes on disk that an engine with that many bytes of weights takes at most."""
    return weights + weights // 20 + PLAN_OVERHEAD


def available_memory() -> int:
    """What programs can still get, in bytes; on a Jetson CPU and GPU share it."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError("/proc/meminfo says nothing of available memory")
