"""Times by arithmetic: a stage takes as long as its products or its memory traffic, plus a start.

A roofline. Its efficiencies are those at which it meets NVIDIA's published prefill and decode
times for TensorRT Edge-LLM on Orin (docs/budgets.md); this project's own engines have not been
timed on a Jetson, so use a measured table where there is one.
"""

from __future__ import annotations

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
        quantised = manifest.quantisation
        self._int8 = quantised is not None and quantised.activations == "int8"

    def stage(self, name: str, tokens: int) -> float:
        """See `Latency.stage`; positions cached before are not counted."""
        stage = self._stages[name]
        work = stage_work(self._manifest, stage, tokens)
        seconds = max(work.operations / self._rate(stage), work.moved / self._bandwidth)
        return seconds + self._device.stage_overhead_ms / 1e3

    def between(self, tokens: int) -> float:  # noqa: ARG002 - the rule costs less than the wait
        """See `Latency.between`."""
        return self._device.stage_overhead_ms / 1e3

    @property
    def _bandwidth(self) -> float:
        """Bytes per second."""
        return self._device.bandwidth_gbps * 1e9 * self._device.bandwidth_efficiency

    def _rate(self, stage: Stage) -> float:
        """Operations per second."""
        peak = self._device.fp16_tflops
        if stage.kind == "segment" and self._int8:
            peak = self._device.int8_tops
        elif self._manifest.hidden_dtype == _HALF_RATE:
            peak /= 2
        return peak * 1e12 * self._device.compute_efficiency
