"""How many bytes a plan writes and needs: on disk, while exporting, building and running.

Predictions are arithmetic on shapes. The constants are stated where they stand; none was
measured on a Jetson.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from atp_export.plan import ExportPlan, SegmentPlan, tensor_bytes
from atp_models.architecture import ModelSpec
from atp_models.compressor import compressor_shapes
from atp_runtime.latency.device import Device, read_device
from atp_runtime.latency.memory import RUNTIME_BYTES, SYSTEM_BYTES, build_bytes

# Python, torch, Transformers and the exporter, without any weight: measured on x86-64 Linux.
EXPORTER_BYTES = 900 * 2**20
ORIN_MODULES = ("orin-nano-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb")
"""See `read_device`."""


@dataclass(frozen=True)
class StageFootprint:
    """A stage's weights in bytes and, for a segment, its layers."""

    name: str
    layers: tuple[int, int] | None
    weight_bytes: int


@dataclass(frozen=True)
class ModuleFit:
    """Whether a module can build the engines and run the bundle."""

    module: str
    builds: bool
    runs: bool


@dataclass(frozen=True)
class Footprint:
    """All predictions, in bytes.

    Attributes:
        stages: In the order they run.
        embedding_bytes: The token table; a tied head reads the same bytes.
        cache_bytes_per_token: Keys and values of all layers for one token.
        export_peak: Resident memory of `atp-export`, parity not included.
        build_peak: Memory while the largest stage's engine is built.
        run_peak: Weights, caches for one image and 1024 further tokens, activations, runtime.
        fits: One verdict per Orin module.
    """

    stages: tuple[StageFootprint, ...]
    embedding_bytes: int
    cache_bytes_per_token: int
    export_peak: int
    build_peak: int
    run_peak: int
    fits: tuple[ModuleFit, ...]

    @property
    def disk_bytes(self) -> int:
        """Bytes of all weights in the bundle."""
        return self.embedding_bytes + sum(stage.weight_bytes for stage in self.stages)


def predict_footprint(plan: ExportPlan) -> Footprint:
    """Predicts bytes from the shapes of the checkpoint's tensors."""
    spec, width = plan.spec, plan.dtype.itemsize
    sizes = tensor_bytes(spec, plan.precision, plan.stored_bytes)
    stages = _stages(plan, sizes)
    embedding = _sum(sizes, "model.language_model.embed_tokens.")
    text = spec.text
    cache = 2 * text.layers * text.kv_heads * text.head_dim * width
    tokens = min(text.max_positions, _visual_tokens(plan) + 1024)
    run = embedding + sum(stage.weight_bytes for stage in stages)
    run += cache * tokens + _activation_bytes(spec, tokens, width) + RUNTIME_BYTES
    build = build_bytes(max(stage.weight_bytes for stage in stages))
    # One tensor is being read and converted (twice its bytes at most in FP32) and one written.
    export = EXPORTER_BYTES + 3 * max(math.prod(s) for s in spec.tensor_shapes().values()) * 4
    return Footprint(
        stages=stages,
        embedding_bytes=embedding,
        cache_bytes_per_token=cache,
        export_peak=export,
        build_peak=build,
        run_peak=run,
        fits=tuple(_fit(read_device(name), build, run) for name in ORIN_MODULES),
    )


def _visual_tokens(plan: ExportPlan) -> int:
    return plan.vision.pruning.most if plan.vision else plan.spec.vision.tokens


def _stages(plan: ExportPlan, sizes: dict[str, int]) -> tuple[StageFootprint, ...]:
    tower, projector = (
        _sum(sizes, "model.vision_tower."),
        _sum(sizes, "model.multi_modal_projector."),
    )
    compressing = plan.vision.compressing if plan.vision else None
    if compressing is not None:
        shapes = compressor_shapes(plan.spec.vision, plan.spec.text.hidden, compressing.grid)
        tower += sum(map(math.prod, shapes.values())) * plan.dtype.itemsize
    norm, head = _sum(sizes, "model.language_model.norm."), _sum(sizes, "lm_head.")
    rows = plan.spec.text.vocabulary
    segments = (
        StageFootprint(segment.name, (segment.first, segment.last), _segment_bytes(segment, sizes))
        for segment in plan.segments
    )
    eyes = [StageFootprint("vision", None, tower + projector)]
    if plan.vision is not None and plan.vision.cut:
        eyes = [
            StageFootprint("vision", None, tower),
            StageFootprint("projector", None, projector),
        ]
    return (
        *eyes,
        *segments,
        *(StageFootprint(it.name, None, norm + head * it.rows // rows) for it in plan.heads),
    )


def _segment_bytes(segment: SegmentPlan, sizes: dict[str, int]) -> int:
    layers = range(segment.first, segment.last)
    return sum(_sum(sizes, f"model.language_model.layers.{layer}.") for layer in layers)


def _sum(sizes: dict[str, int], *prefixes: str) -> int:
    return sum(size for name, size in sizes.items() if name.startswith(prefixes))


def _activation_bytes(spec: ModelSpec, tokens: int, width: int) -> int:
    """The widest moment of a decoder layer: attention scores and the feed-forward's products."""
    text = spec.text
    scores = text.heads * tokens * tokens * 4
    feed_forward = 3 * tokens * text.intermediate * width
    return 2 * scores + feed_forward + 4 * tokens * text.hidden * width


def _fit(device: Device, build: int, run: int) -> ModuleFit:
    usable = int(device.memory_gb * 2**30) - SYSTEM_BYTES
    return ModuleFit(device.name, builds=build <= usable, runs=run <= usable)
