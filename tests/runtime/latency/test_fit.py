"""Efficiencies that are found again, and those of the devices that come with the package."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.latency.published import leave_one_out, manifest_of, observed, predicted

from atp_runtime.latency.device import Device, device_names, read_device
from atp_runtime.latency.fit import (
    Efficiencies,
    Observation,
    Part,
    fit_efficiencies,
    observations,
)
from atp_runtime.latency.forecast import ERROR_BAND
from atp_runtime.latency.predictor import PredictedLatency
from atp_runtime.latency.table import FORMAT, SCHEMA_VERSION, LatencyTable, Setting, Timing


def test_the_devices_have_the_efficiencies_that_fit_what_is_published() -> None:
    found = fit_efficiencies([it for rows in observed().values() for it in rows])
    for name in device_names():
        device = read_device(name)
        assert device == found.of(device)


def test_models_that_were_not_fitted_to_are_predicted() -> None:
    errors = sorted(abs(row.error) for row in leave_one_out())
    assert errors[len(errors) // 2] <= 0.15
    assert errors[-1] <= ERROR_BAND


@settings(max_examples=5, deadline=None)
@given(st.integers(40, 180), st.integers(20, 90), st.integers(0, 15))
def test_efficiencies_on_the_grid_are_found_again(compute: int, bandwidth: int, layer: int) -> None:
    true = Efficiencies(compute * 0.005, bandwidth * 0.01, layer * 0.025, 0.0)
    parts = [
        Part(1.0, 0.01, 1, 0.0),
        Part(0.001, 0.5, 1, 0.0),
        Part(1e-6, 1e-6, 1000, 1e-4),
        Part(0.2, 0.1, 8, 0.0),
    ]
    observed = [Observation((part,), predicted(Observation((part,), 1.0), true)) for part in parts]
    found = fit_efficiencies(observed)
    assert found.compute == pytest.approx(true.compute, abs=1e-6)
    assert found.bandwidth == pytest.approx(true.bandwidth, abs=1e-6)
    assert found.layer_overhead_ms == pytest.approx(true.layer_overhead_ms, abs=1e-6)
    assert found.error < 1e-6


def test_a_table_of_a_device_gives_that_device(tmp_path: Path) -> None:
    manifest = manifest_of(8, 512, cuts=(4,))
    like = read_device("orin-nx-16gb")
    board = Efficiencies(0.4, 0.6, 0.2, 0.0).of(like)
    latency = PredictedLatency(manifest, board)

    def timings(name: str, counts: tuple[int, ...]) -> tuple[Timing, ...]:
        seconds = [latency.stage(name, tokens) for tokens in counts]
        return tuple(Timing(count, it, it) for count, it in zip(counts, seconds, strict=True))

    stages = {name: timings(name, (32, 128, 640, 2048)) for name in ("segment_0", "segment_1")}
    stages |= {"vision": timings("vision", (576,)), "head": timings("head", (1,))}
    table = LatencyTable(
        FORMAT,
        SCHEMA_VERSION,
        Setting("a board", "tensorrt", None, "MAXN"),
        {},
        "",
        20,
        stages,
        (),
        stages["segment_0"],
    )
    found = fit_efficiencies(observations(manifest, table, like))
    assert found.error < 0.01
    fitted = PredictedLatency(manifest, found.of(like))
    for tokens in (64, 300, 1000):
        ratio = fitted.stage("segment_1", tokens) / latency.stage("segment_1", tokens)
        assert abs(math.log(ratio)) < 0.02


@pytest.mark.parametrize(
    "change", [{"memory_gb": 0.0}, {"compute_efficiency": 1.2}, {"stage_overhead_ms": -1.0}]
)
def test_a_device_that_cannot_be_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="efficiencies"):
        Device(**{**vars(read_device("orin-nano-8gb")), **change})
