"""The predictor against published times, and against what a roofline must be like."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.latency.published import PUBLISHED, QWEN3, manifest_of

from atp_runtime.errors import InputError
from atp_runtime.latency.device import device_names, read_device
from atp_runtime.latency.model import Entering, first_token_seconds, segments_seconds
from atp_runtime.latency.predictor import PredictedLatency
from atp_runtime.latency.table import timed_stages
from atp_runtime.manifest import FileRecord, Quantisation, Stage, TensorSpec, VisionPruning
from atp_runtime.statistics import run_flops
from atp_runtime.structure import Structure
from atp_runtime.tensor_names import ROWS


@pytest.mark.parametrize(("device", "model"), PUBLISHED)
def test_orin_is_predicted_within_a_quarter_of_what_is_published(device: str, model: str) -> None:
    int4 = Quantisation("int4", None, 128, 1)
    manifest = manifest_of(*QWEN3[model], weight_bits=4, quantisation=int4)
    latency = PredictedLatency(manifest, read_device(device))
    long, short, rate = PUBLISHED[device, model]

    def seconds(tokens: int) -> float:
        return segments_seconds(manifest, latency, [Entering(tokens)])

    assert 1e3 * seconds(2048) == pytest.approx(long, rel=0.25)
    assert 1e3 * seconds(292) == pytest.approx(short, rel=0.25)
    assert 1 / seconds(1) == pytest.approx(rate, rel=0.25)


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_more_tokens_never_take_less(one: int, other: int) -> None:
    latency = PredictedLatency(manifest_of(), read_device("orin-nano-8gb"))
    fewer, more = sorted((one, other))
    assert latency.stage("segment_0", fewer) <= latency.stage("segment_0", more)


def test_int8_activations_have_the_int8_rate_and_int4_weights_do_not() -> None:
    device = replace(read_device("agx-orin-64gb"), stage_overhead_ms=0.0, layer_overhead_ms=0.0)
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
    dense = first_token_seconds(manifest, latency, [Entering(640)] * 3, 1)
    pruned = first_token_seconds(manifest, latency, [Entering(it) for it in (640, 208, 100)], 1)
    saved = sum(
        latency.stage(name, 640) - latency.stage(name, left)
        for name, left in (("segment_1", 208), ("segment_2", 100))
    )
    assert dense - pruned == pytest.approx(saved)


def test_a_second_image_costs_its_own_vision_stage() -> None:
    manifest = manifest_of()
    latency = PredictedLatency(manifest, read_device("orin-nx-16gb"))
    entering = [Entering(700)]
    one, two = (first_token_seconds(manifest, latency, entering, images) for images in (1, 2))
    assert two - one == pytest.approx(latency.stage("vision", 576))


def test_visual_tokens_that_are_spared_work_take_less() -> None:
    usual = manifest_of(*QWEN3["2B"])
    (segment,) = usual.segments
    told = replace(segment, inputs=(TensorSpec(ROWS[0], "int64", ("others",)),))
    stages = tuple(told if it == segment else it for it in usual.stages)
    spared = replace(usual, stages=stages, structure=Structure(window=5, ffn_ratio=4))
    device = read_device("agx-orin-64gb")
    whole, less = (PredictedLatency(it, device) for it in (usual, spared))
    text, photo = Entering(640), Entering(64, 576)
    assert segments_seconds(spared, less, [text]) == segments_seconds(usual, whole, [text])
    assert segments_seconds(usual, whole, [photo]) == segments_seconds(usual, whole, [text])
    operations = [
        run_flops(it, it.segments[0], photo.tokens, 0, photo.visual) for it in (usual, spared)
    ]
    rate = device.fp16_tflops * 1e12 * device.compute_efficiency
    saved = segments_seconds(usual, whole, [photo]) - segments_seconds(spared, less, [photo])
    assert saved == pytest.approx((operations[0] - operations[1]) / rate)


def test_a_projector_of_its_own_is_counted_with_the_tower() -> None:
    manifest = manifest_of()
    projector = Stage("projector", "projector", "p.onnx", ("p.data",), (), ())
    cut = replace(
        manifest,
        vision=replace(manifest.vision, pruning=VisionPruning("class_attention", {}, most=64)),
        stages=(*manifest.stages, projector),
        files={**manifest.files, "p.data": FileRecord(10**8, "")},
    )
    device = read_device("orin-nano-8gb")
    whole, alone = (PredictedLatency(it, device) for it in (cut, manifest))
    more = whole.stage("vision", 576) - alone.stage("vision", 576)
    assert more == pytest.approx(whole.stage("projector", 64))
    assert "projector" not in timed_stages(cut)


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError) as refused:
        read_device("../table")
    assert all(name in refused.value.why for name in device_names())


@pytest.mark.parametrize("name", device_names())
def test_every_device_file_can_be_read(name: str) -> None:
    assert 0 < read_device(name).compute_efficiency <= 1
