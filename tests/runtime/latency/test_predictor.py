"""The predictor against published times, and against what a roofline must be like."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.errors import InputError
from atp_runtime.latency.device import device_names, read_device
from atp_runtime.latency.model import first_token_seconds, segments_seconds
from atp_runtime.latency.predictor import PredictedLatency
from atp_runtime.manifest import (
    Embedding,
    FileRecord,
    Manifest,
    Provenance,
    PruningPoint,
    Quantisation,
    Stage,
    TensorSpec,
    TextModel,
    VisionModel,
)

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
    head = Stage("head", "head", "head", (), (hidden_states,), (logits,))
    return Manifest(
        "atp-bundle", 0, "fp16", "portable", 18, text,
        VisionModel((336, 336), (24, 24), 576, 0, 0, 9),
        Embedding("", "float16"), {}, (vision, *stages, head), "", None,
        Provenance("", "", "", {}), files, quantisation=quantisation,
    )  # fmt: skip


@pytest.mark.parametrize(("device", "model"), PUBLISHED)
def test_orin_is_predicted_within_a_third_of_what_is_published(device: str, model: str) -> None:
    int4 = Quantisation("int4", None, 128, 1)
    manifest = manifest_of(*QWEN3[model], weight_bits=4, quantisation=int4)
    latency = PredictedLatency(manifest, read_device(device))
    long, short, rate = PUBLISHED[device, model]
    assert 1e3 * segments_seconds(manifest, latency, [2048]) == pytest.approx(long, rel=0.34)
    assert 1e3 * segments_seconds(manifest, latency, [292]) == pytest.approx(short, rel=0.34)
    assert 1 / segments_seconds(manifest, latency, [1]) == pytest.approx(rate, rel=0.34)


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_more_tokens_never_take_less(one: int, other: int) -> None:
    latency = PredictedLatency(manifest_of(), read_device("orin-nano-8gb"))
    fewer, more = sorted((one, other))
    assert latency.stage("segment_0", fewer) <= latency.stage("segment_0", more)


def test_int8_activations_have_the_int8_rate_and_int4_weights_do_not() -> None:
    device = replace(read_device("agx-orin-64gb"), stage_overhead_ms=0.0)
    shape = QWEN3["2B"]

    def seconds(quantisation: Quantisation | None) -> float:
        manifest = manifest_of(*shape, weight_bits=8, quantisation=quantisation)
        return PredictedLatency(manifest, device).stage("segment_0", 1024)

    fp16, int8 = seconds(None), seconds(Quantisation("int8", "int8", None, 1))
    assert fp16 / int8 == pytest.approx(device.int8_tops / device.fp16_tflops)
    assert seconds(Quantisation("int4", None, 128, 1)) == fp16


def test_pruning_pays_only_behind_the_point() -> None:
    manifest = manifest_of(8, cuts=(2, 4))
    latency = PredictedLatency(manifest, read_device("orin-nano-8gb"))
    dense = first_token_seconds(manifest, latency, [640, 640, 640], 1)
    pruned = first_token_seconds(manifest, latency, [640, 208, 100], 1)
    saved = sum(
        latency.stage(name, 640) - latency.stage(name, left)
        for name, left in (("segment_1", 208), ("segment_2", 100))
    )
    assert dense - pruned == pytest.approx(saved)


def test_a_second_image_costs_its_own_vision_stage() -> None:
    manifest = manifest_of()
    latency = PredictedLatency(manifest, read_device("orin-nx-16gb"))
    one, two = (first_token_seconds(manifest, latency, [700], images) for images in (1, 2))
    assert two - one == pytest.approx(latency.stage("vision", 576))


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError) as refused:
        read_device("../table")
    assert all(name in refused.value.why for name in device_names())


@pytest.mark.parametrize("name", device_names())
def test_every_device_file_can_be_read(name: str) -> None:
    assert 0 < read_device(name).compute_efficiency <= 1
