"""The devices that times can be predicted for: one JSON file each in `devices/`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from atp_runtime.errors import InputError
from atp_runtime.evaluation.json_files import parse_declared, read_declared


@dataclass(frozen=True)
class Device:
    """A device's peaks, and how much of them is reached.

    Attributes:
        name: As people say it.
        source: Where the numbers are from.
        memory_gb: GB of memory.
        bandwidth_gbps: GB/s of memory traffic at peak.
        fp16_tflops: Dense FP16 TFLOP/s at peak; TF32, which FP32 graphs use, has half of it.
        int8_tops: Dense INT8 TOP/s at peak.
        compute_efficiency: The share of the arithmetic peak that large matrix products reach.
        bandwidth_efficiency: The share of the bandwidth that reading weights reaches.
        layer_overhead_ms: What a decoder layer costs beside its products and its memory traffic:
            small kernels and their starts.
        stage_overhead_ms: What starting a stage costs, and at a pruning point the host.
    """

    name: str
    source: str
    memory_gb: float
    bandwidth_gbps: float
    fp16_tflops: float
    int8_tops: float
    compute_efficiency: float
    bandwidth_efficiency: float
    layer_overhead_ms: float
    stage_overhead_ms: float

    def __post_init__(self) -> None:
        rates = (self.memory_gb, self.bandwidth_gbps, self.fp16_tflops, self.int8_tops)
        shares = (self.compute_efficiency, self.bandwidth_efficiency)
        overheads = (self.layer_overhead_ms, self.stage_overhead_ms)
        if min(rates) <= 0 or not all(0 < it <= 1 for it in shares) or min(overheads) < 0:
            raise ValueError("rates are above 0, efficiencies up to 1, overheads not below 0")

    def renamed(self, name: str, source: str) -> Device:
        """The same numbers under another name, from another source."""
        return replace(self, name=name, source=source)


def device_names() -> tuple[str, ...]:
    """What `read_device` knows."""
    files = resources.files(__package__) / "devices"
    return tuple(
        sorted(it.name.removesuffix(".json") for it in files.iterdir() if it.name[-5:] == ".json")
    )


def read_device(name: str) -> Device:
    """The device of that name, such as "orin-nano-8gb", or of a file, such as "my-board.json".

    Raises:
        InputError: There is none, or the file describes none.
    """
    if name.endswith(".json"):
        return read_declared(
            Device, Path(name), fix="see atp_runtime/latency/devices for examples."
        )
    if name not in device_names():
        raise InputError(
            f"unknown device {name!r}",
            why=f"times can be predicted for {', '.join(device_names())}.",
            fix="choose one of them, give a file such as theirs, or measure on the device.",
        )
    text = (resources.files(__package__) / "devices" / f"{name}.json").read_text(encoding="utf-8")
    return parse_declared(Device, text, source=f"{name}.json", fix="install atp-llava again.")
