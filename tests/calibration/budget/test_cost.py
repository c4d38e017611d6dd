from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_calibration.budget.cost import Cost, Size, entering_segments
from atp_calibration.budget.target import FIRST_TOKEN, SPEEDUP, TOKENS, Target
from atp_runtime.errors import InputError
from atp_runtime.latency.device import read_device
from atp_runtime.latency.predictor import PredictedLatency
from atp_runtime.manifest import Manifest, TensorSpec, read_manifest
from atp_runtime.structure import Structure
from atp_runtime.tensor_names import ROWS

# Segments of 2, 1 and 2 layers, 64 visual tokens.
ONE, TWO = Size(1, 10), Size(2, 10)


@pytest.fixture(scope="module")
def manifest(atp_bundle: Path) -> Manifest:
    return read_manifest(atp_bundle)


def test_tokens_are_averaged_over_layers_and_images(manifest: Manifest) -> None:
    cost = Cost(manifest, Target(TOKENS, 20.0), None)
    assert cost(ONE, (24, 4)) == pytest.approx((2 * 64 + 24 + 2 * 4) / 5)
    assert cost(TWO, (48, 8)) == cost(ONE, (24, 4))
    assert entering_segments(manifest, 128, (48, 8)) == [128, 48, 8]


@pytest.mark.parametrize("with_device", [False, True])
def test_a_speedup_is_over_the_unpruned_prefill(manifest: Manifest, with_device: bool) -> None:
    latency = PredictedLatency(manifest, read_device("orin-nano-8gb")) if with_device else None
    cost = Cost(manifest, Target(SPEEDUP, 2.0), latency)
    assert cost(ONE, (64, 64)) == 1
    assert cost(ONE, (24, 4)) < 1


def test_a_speedup_of_arithmetic_counts_the_work_that_visual_tokens_are_spared(
    manifest: Manifest,
) -> None:
    """Pruning saves less where a visual token does less."""
    told = TensorSpec(ROWS[0], "int64", ("others",))
    stages = tuple(
        replace(it, inputs=(*it.inputs, told)) if it.kind == "segment" else it
        for it in manifest.stages
    )
    spared = replace(manifest, stages=stages, structure=Structure(window=3, ffn_ratio=4))
    target = Target(SPEEDUP, 2.0)
    usual, less = (Cost(it, target, None)(ONE, (24, 4)) for it in (manifest, spared))
    assert usual < less < 1


@given(st.integers(0, 64), st.integers(0, 64), st.integers(0, 64))
def test_dropping_more_never_costs_more(manifest: Manifest, a: int, b: int, c: int) -> None:
    low, middle, high = sorted((a, b, c))
    latency = PredictedLatency(manifest, read_device("orin-nano-8gb"))
    for kind in (TOKENS, SPEEDUP, FIRST_TOKEN):
        cost = Cost(manifest, Target(kind, 2.0), latency)
        assert cost(ONE, (middle, low)) <= cost(ONE, (high, low))
        assert cost(ONE, (high, low)) <= cost(ONE, (high, middle))


def test_a_time_without_a_device_is_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="without a device") as refused:
        Cost(manifest, Target(FIRST_TOKEN, 0.4), None)
    assert "--device" in refused.value.fix
