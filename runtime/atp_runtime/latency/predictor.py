"""Times by arithmetic: a stage takes as long as its products or its memory traffic, and a start.

A roofline. Its efficiencies are those at which it meets NVIDIA's published prefill and decode
times for TensorRT Edge-LLM on Orin (docs/budgets.md, `atp_runtime.latency.fit`); this project's
own engines have not been timed on a Jetson, so use a measured table where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence

from atp_runtime.latency.device import Device
from atp_runtime.latency.model import Latency
from atp_runtime.manifest import Manifest, Stage
from atp_runtime.stage_work import stage_work

_HALF_RATE = "float32"  # Ampere's tensor cores do TF32 at half the rate of FP16


class PredictedLatency(Latency):
    """Times of a bundle on a device that need not be there.

    Args:
        manifest: The bundle's.
        device: Where it would run.
    """

    def __init__(self, manifest: Manifest, device: Device) -> None:
        self._manifest = manifest
        self._device = device
        self._stages = {stage.name: stage for stage in manifest.stages}

    def stage(self, name: str, tokens: int, visual: int = 0) -> float:
        """See `Latency.stage`; positions cached before are not counted."""
        stage, projector = self._stages[name], self._manifest.projector
        seconds = self._run(stage, tokens, 0, visual)
        if stage.kind == "vision" and projector is not None:
            seconds += self._run(projector, self._manifest.vision.most_tokens, 0)
        return seconds

    def decode_step(self, cached: Sequence[int]) -> float:
        """One token through segments and head; no rule is asked for it.

        Args:
            cached: Positions that each segment's caches hold.
        """
        rows = zip(self._manifest.segments, cached, strict=True)
        seconds = sum(self._run(stage, 1, past) for stage, past in rows)
        return seconds + sum(self._run(stage, 1, 0) for stage in self._manifest.heads)

    def between(self, tokens: int) -> float:  # noqa: ARG002 - the rule costs less than the wait
        """See `Latency.between`."""
        return self._device.stage_overhead_ms / 1e3

    def _run(self, stage: Stage, tokens: int, past: int, visual: int = 0) -> float:
        work = stage_work(self._manifest, stage, tokens, past, visual)
        seconds = max(work.operations / self._rate(stage), work.moved / self._bandwidth)
        layers = stage.layers[1] - stage.layers[0]
        overhead = layers * self._device.layer_overhead_ms + self._device.stage_overhead_ms
        return seconds + overhead / 1e3

    @property
    def _bandwidth(self) -> float:
        """Bytes per second."""
        return self._device.bandwidth_gbps * 1e9 * self._device.bandwidth_efficiency

    def _rate(self, stage: Stage) -> float:
        """Operations per second."""
        return peak_rate(self._manifest, stage, self._device) * self._device.compute_efficiency


def peak_rate(manifest: Manifest, stage: Stage, device: Device) -> float:
    """Operations per second of a stage's products, at the device's peak."""
    quantised, peak = manifest.quantisation, device.fp16_tflops
    if stage.kind == "segment" and quantised is not None and quantised.activations == "int8":
        peak = device.int8_tops
    elif manifest.hidden_dtype == _HALF_RATE:
        peak /= 2
    return peak * 1e12
