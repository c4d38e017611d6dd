"""NVIDIA's published times on Orin, and how well the predictor meets those it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.latency.device import read_device
from atp_runtime.latency.fit import Efficiencies, Observation, fit_efficiencies, make_part
from atp_runtime.manifest import (
    Embedding,
    FileRecord,
    Manifest,
    Provenance,
    Quantisation,
    Stage,
    TensorSpec,
    TextModel,
    VisionModel,
)
from atp_runtime.pruning_point import PruningPoint

VOCABULARY = 151936
# Qwen3's decoders: layers, hidden, heads, intermediate; 8 key-value heads of 128.
QWEN3 = {"8B": (36, 4096, 32, 12288), "4B": (36, 2560, 32, 9728), "2B": (28, 2048, 16, 6144)}
# TensorRT Edge-LLM 0.10, INT4 weights: ms of 2048 tokens, ms of 292, tokens/s. The Nano's power
# mode is not published; its numbers are nearer to the one without "Super".
PUBLISHED = {
    ("agx-orin-64gb", "8B"): (1388, 178, 30.6),
    ("agx-orin-64gb", "4B"): (758, 106, 50.8),
    ("agx-orin-64gb", "2B"): (298, 45.7, 88.7),
    ("orin-nx-16gb-super", "8B"): (3106, 401, 17.4),
    ("orin-nx-16gb-super", "4B"): (1741, 217, 29.4),
    ("orin-nx-16gb-super", "2B"): (760, 93.5, 52.6),
    ("orin-nano-8gb", "2B"): (1017, 167, 32.3),
}


def manifest_of(
    layers: int = 4,
    hidden: int = 256,
    heads: int = 4,
    intermediate: int = 512,
    *,
    cuts: tuple[int, ...] = (),
    weight_bits: int = 16,
    quantisation: Quantisation | None = None,
) -> Manifest:
    """An FP16 manifest with weights of that many bits in the segments."""
    text = TextModel(layers, hidden, heads, min(heads, 8), 128, intermediate, VOCABULARY, 8192)
    width = heads * 128
    per_layer = 2 * hidden * (width + text.kv_heads * 128) + 3 * hidden * intermediate
    ends = (*cuts, layers)
    stages, files, first = [], {}, 0
    for number, last in enumerate(ends):
        name = f"segment_{number}"
        point = PruningPoint(last, "top_k", {"keep": 1}) if last != layers else None
        files[name] = FileRecord((last - first) * per_layer * weight_bits // 8, "")
        stages.append(Stage(name, "segment", name, (name,), (), (), (first, last), point))
        first = last
    files["vision"] = FileRecord(2 * 300_000_000, "")
    vision = Stage("vision", "vision", "vision", ("vision",), (), ())
    hidden_states = TensorSpec("hidden_states", "float16", (1, "tokens", hidden))
    logits = TensorSpec("logits", "float32", (1, VOCABULARY))
    files["head"] = FileRecord(2 * hidden * VOCABULARY, "")
    head = Stage("head", "head", "head", ("head",), (hidden_states,), (logits,))
    return Manifest(
        "atp-bundle", 0, "fp16", "portable", 18, text,
        VisionModel((336, 336), (24, 24), 576, 0, 0, 9),
        Embedding("", "float16"), {}, (vision, *stages, head), "", None,
        Provenance("", "", "", {}), files, quantisation=quantisation,
    )  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """A published time, and what is predicted for it from those of the other models and devices.

    Attributes:
        device: Where.
        model: Of it.
        tokens: Of the prompt; 1 is a decode step.
        published: Seconds.
        predicted: Seconds.
    """

    device: str
    model: str
    tokens: int
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """As a share of what is published."""
        return self.predicted / self.published - 1


LENGTHS = (2048, 292, 1)


def observed() -> dict[tuple[str, str], list[Observation]]:
    """The published times, each of the decoder and its head."""
    int4 = Quantisation("int4", None, 128, 1)
    found = {}
    for (name, model), (long, short, rate) in PUBLISHED.items():
        manifest = manifest_of(*QWEN3[model], weight_bits=4, quantisation=int4)
        device = read_device(name)
        found[name, model] = [
            Observation(
                tuple(
                    make_part(manifest, stage, count, device)
                    for stage, count in (("segment_0", tokens), ("head", 1))
                ),
                seconds,
            )
            for tokens, seconds in zip(LENGTHS, (long / 1e3, short / 1e3, 1 / rate), strict=True)
        ]
    return found


def predicted(it: Observation, found: Efficiencies) -> float:
    """Seconds of an observation's parts."""
    return sum(
        max(part.compute_seconds / found.compute, part.memory_seconds / found.bandwidth)
        + part.layers * found.layer_overhead_ms / 1e3
        + part.fixed_seconds
        for part in it.parts
    )


def leave_one_out() -> list[LeftOut]:
    """Each device and model, predicted from all others."""
    rows, everything = [], observed()
    for (device, model), mine in everything.items():
        others = [it for key, rest in everything.items() if key != (device, model) for it in rest]
        found = fit_efficiencies(others)
        rows += [
            LeftOut(device, model, tokens, it.seconds, predicted(it, found))
            for tokens, it in zip(LENGTHS, mine, strict=True)
        ]
    return rows
