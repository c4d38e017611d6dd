"""Times by arithmetic: a stage takes as long as its products or its memory traffic, plus a start.

A roofline. Its efficiencies are those at which it meets NVIDIA's published prefill and decode
times for TensorRT Edge-LLM on Orin (docs/budgets.md); this project's own engines have not been
timed on a Jetson, so use a measured table where there is one.
"""

from __future__ import annotations

from atp_runtime.backends.base import item_size
from atp_runtime.latency.device import Device
from atp_runtime.latency.model import Latency
from atp_runtime.manifest import Manifest, Stage
from atp_runtime.statistics import segment_flops

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
        self._dtype = manifest.heads[0].inputs[0].dtype  # of hidden states and caches
        quantised = manifest.quantisation
        self._int8 = quantised is not None and quantised.activations == "int8"

    def stage(self, name: str, tokens: int) -> float:
        """See `Latency.stage`; positions cached before are not counted."""
        stage = self._stages[name]
        operations = self._operations(stage, tokens)
        seconds = max(operations / self._rate(stage), self._traffic(stage, tokens))
        return seconds + self._device.stage_overhead_ms / 1e3

    def between(self, tokens: int) -> float:  # noqa: ARG002 - the rule costs less than the wait
        """See `Latency.between`."""
        return self._device.stage_overhead_ms / 1e3

    def _operations(self, stage: Stage, tokens: int) -> float:
        if stage.kind == "segment":
            return segment_flops(self._manifest.text, stage, tokens, 0)
        # Every weight meets every position once; attention is a few percent of a tower.
        return 2.0 * tokens * self._weight_bytes(stage) / item_size(self._dtype)

    def _rate(self, stage: Stage) -> float:
        """Operations per second."""
        peak = self._device.fp16_tflops
        if stage.kind == "segment" and self._int8:
            peak = self._device.int8_tops
        elif self._dtype == _HALF_RATE:
            peak /= 2
        return peak * 1e12 * self._device.compute_efficiency

    def _traffic(self, stage: Stage, tokens: int) -> float:
        """Seconds that weights and new keys and values take."""
        moved = self._weight_bytes(stage)
        if stage.kind == "segment":
            text, layers = self._manifest.text, stage.layers[1] - stage.layers[0]
            row = 2 * text.kv_heads * text.head_dim * item_size(self._dtype)
            moved += layers * tokens * row
        return moved / (self._device.bandwidth_gbps * 1e9 * self._device.bandwidth_efficiency)

    def _weight_bytes(self, stage: Stage) -> int:
        if stage.kind == "head":  # a tied one reads the token table, perhaps a part of it
            rows = int(stage.outputs[0].shape[-1])
            return rows * self._manifest.text.hidden * item_size(self._dtype)
        return sum(self._manifest.files[name].bytes for name in stage.data)
