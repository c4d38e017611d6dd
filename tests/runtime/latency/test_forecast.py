from __future__ import annotations

from dataclasses import replace

import pytest
from tests.runtime.latency.published import manifest_of

from atp_runtime.latency.device import device_names, read_device
from atp_runtime.latency.forecast import Counts, forecast
from atp_runtime.latency.memory import SYSTEM_BYTES, largest_build, run_needs
from atp_runtime.latency.model import Entering, first_token_seconds
from atp_runtime.latency.predictor import PredictedLatency

SHAPE = (32, 4096, 32, 11008)
PROMPT = Counts(images=1, text=64, kept=(140, 50, 33))


@pytest.mark.parametrize("name", device_names())
def test_a_forecast_is_the_predictor_s(name: str) -> None:
    manifest, device = manifest_of(*SHAPE, cuts=(4, 14, 24)), read_device(name)
    latency = PredictedLatency(manifest, device)
    cached = [640, 204, 114, 97]
    entering = [Entering(64, tokens - 64) for tokens in cached]
    found = forecast(manifest, device, PROMPT)
    assert found.first_token_seconds == first_token_seconds(manifest, latency, entering, 1)
    assert found.tokens_per_second == 1 / latency.decode_step(cached)
    assert found.stages["segment_3"] == latency.stage("segment_3", 97)
    assert list(found.stages) == [
        "vision",
        "segment_0",
        "segment_1",
        "segment_2",
        "segment_3",
        "head",
    ]


def test_two_images_are_seen_and_run_twice() -> None:
    manifest, device = manifest_of(*SHAPE, cuts=(4,)), read_device("agx-orin-64gb")
    one = forecast(manifest, device, Counts(1, 64, (576,)))
    two = forecast(manifest, device, Counts(2, 64, (1152,)))
    assert two.first_token_seconds > 1.8 * one.first_token_seconds


def test_a_cut_without_a_point_prunes_nothing() -> None:
    manifest = manifest_of(*SHAPE, cuts=(4, 14))
    stages = tuple(
        replace(stage, pruning=None) if stage.name == "segment_0" else stage
        for stage in manifest.stages
    )
    found = forecast(
        replace(manifest, stages=stages), read_device("agx-orin-64gb"), Counts(1, 64, (50,))
    )
    assert found.stages["segment_1"] == pytest.approx(found.stages["segment_0"] * 10 / 4, rel=0.1)
    assert found.stages["segment_2"] < found.stages["segment_1"]


def test_caches_slow_decoding_down_by_their_bytes() -> None:
    manifest = manifest_of(*SHAPE, cuts=(4, 14, 24))
    latency = PredictedLatency(manifest, read_device("orin-nano-8gb"))
    full, pruned = (latency.decode_step(it) for it in ((640,) * 4, (640, 204, 114, 97)))
    layers = (4, 10, 10, 8)
    saved = sum(
        (640 - left) * depth for left, depth in zip((640, 204, 114, 97), layers, strict=True)
    )
    rate = 68e9 * read_device("orin-nano-8gb").bandwidth_efficiency
    per_position = 2 * 8 * 128 * 2  # keys and values of 8 heads of 128, in FP16
    assert full - pruned == pytest.approx(saved * per_position / rate)


def test_what_does_not_fit_is_said() -> None:
    manifest = manifest_of(*SHAPE, cuts=(4, 14, 24))
    nano, agx = (
        forecast(manifest, read_device(it), PROMPT) for it in ("orin-nano-8gb", "agx-orin-64gb")
    )
    assert not nano.runs
    assert not nano.builds
    assert agx.runs
    assert agx.builds
    assert nano.run_bytes == run_needs(manifest).total
    assert nano.build_bytes == largest_build(manifest) > 8 * 2**30 - SYSTEM_BYTES
