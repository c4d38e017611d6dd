"""Fits a device's efficiencies to times that were measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from atp_runtime.latency.device import Device
from atp_runtime.latency.predictor import peak_rate
from atp_runtime.latency.table import LatencyTable
from atp_runtime.manifest import Manifest
from atp_runtime.stage_work import stage_work

_COMPUTE = np.arange(0.05, 1.0001, 0.005)
_BANDWIDTH = np.arange(0.05, 1.0001, 0.01)
_LAYER_MS = np.arange(0.0, 0.5001, 0.025)

Grid = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A stage's run, at the device's peaks.

    Attributes:
        compute_seconds: Of its products.
        memory_seconds: Of its traffic.
        layers: Of the decoder that it has.
        fixed_seconds: What it costs in any case.
    """

    compute_seconds: float
    memory_seconds: float
    layers: int
    fixed_seconds: float


@dataclass(frozen=True)
class Observation:
    """A measured time and the parts it consists of."""

    parts: tuple[Part, ...]
    seconds: float


@dataclass(frozen=True)
class Efficiencies:
    """See `Device`, and how well they meet what was measured.

    Attributes:
        compute: Of the arithmetic peak.
        bandwidth: Of the memory's.
        layer_overhead_ms: Of each decoder layer.
        error: Mean magnitude of the logarithm of predicted over measured.
    """

    compute: float
    bandwidth: float
    layer_overhead_ms: float
    error: float

    def of(self, device: Device) -> Device:
        """The device with these."""
        return replace(
            device,
            compute_efficiency=self.compute,
            bandwidth_efficiency=self.bandwidth,
            layer_overhead_ms=self.layer_overhead_ms,
        )


def make_part(manifest: Manifest, name: str, tokens: int, device: Device) -> Part:
    """A run of a stage.

    Args:
        manifest: The bundle's.
        name: The stage's.
        tokens: New positions; of the vision stage, the features of an image.
        device: Tells the peaks.
    """
    stage = manifest.stage(name)
    work = stage_work(manifest, stage, tokens)
    return Part(
        work.operations / peak_rate(manifest, stage, device),
        work.moved / (device.bandwidth_gbps * 1e9),
        stage.layers[1] - stage.layers[0],
        device.stage_overhead_ms / 1e3,
    )


def observations(manifest: Manifest, table: LatencyTable, device: Device) -> list[Observation]:
    """Those of a measured table: every stage at every length.

    Args:
        manifest: Of the bundle that was measured.
        table: Its times.
        device: Tells the peaks of where that was.
    """
    return [
        Observation((make_part(manifest, name, timing.tokens, device),), timing.median_seconds)
        for name, timings in table.stages.items()
        for timing in timings
    ]


def fit_efficiencies(observed: Sequence[Observation]) -> Efficiencies:
    """The best of a grid: 0.5 % steps of arithmetic, 1 % of bandwidth, 0.025 ms per layer.

    Errors count by their logarithm, so that half and twice the time are equally wrong, and not by
    their squares: one odd measurement does not bend the others.

    Args:
        observed: At least one.
    """
    compute, bandwidth, layer = np.meshgrid(_COMPUTE, _BANDWIDTH, _LAYER_MS, indexing="ij")
    error = np.zeros_like(compute)
    for it in observed:
        error += np.abs(np.log(_predicted(it, compute, bandwidth, layer) / it.seconds))
    best = np.unravel_index(int(np.argmin(error)), error.shape)
    return Efficiencies(
        round(float(compute[best]), 4),
        round(float(bandwidth[best]), 4),
        round(float(layer[best]), 4),
        float(error[best]) / len(observed),
    )


def _predicted(observation: Observation, compute: Grid, bandwidth: Grid, layer: Grid) -> Grid:
    seconds = np.zeros_like(compute)
    for part in observation.parts:
        bound = np.maximum(part.compute_seconds / compute, part.memory_seconds / bandwidth)
        seconds += bound + part.layers * layer / 1e3 + part.fixed_seconds
    return seconds
