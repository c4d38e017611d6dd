"""What the sampled mode takes when memory is short."""

from __future__ import annotations

from typing import Any

import pytest

from atp_export.parity.report import Check
from atp_export.parity.sampled import affordable_tower_layers, check_samples, sampled_layers
from atp_export.parity.tolerances import TOLERANCES
from atp_models.architecture import ModelSpec, read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.reference_parts import ReferenceParts
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import Stage

GIB = 1 << 30


@pytest.fixture(scope="module")
def checkpoint(tiny: Any) -> Checkpoint:
    return Checkpoint.open(tiny.checkpoint)


@pytest.fixture(scope="module")
def spec(checkpoint: Checkpoint) -> ModelSpec:
    return read_architecture(checkpoint)


def segment(first: int, last: int) -> Stage:
    return Stage("segment_1", "segment", "", (), (), (), (first, last))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((4, 14), (4, 8, 13)), ((4, 5), (4,)), ((4, 6), (4, 5)), ((0, 32), (0, 15, 31))],
)
def test_layers_are_the_first_one_between_and_the_last(
    layers: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert sampled_layers(segment(*layers)) == expected


def test_the_whole_tower_is_taken_when_it_fits_and_one_layer_always(spec: ModelSpec) -> None:
    taken = [affordable_tower_layers(spec, memory) for memory in (0, GIB, GIB + 250_000, 4 * GIB)]

    assert taken == sorted(taken)
    assert (taken[0], taken[-1]) == (1, spec.vision.layers)
    assert 1 < taken[2] < spec.vision.layers


def test_the_report_says_so_when_only_part_of_the_tower_fits(
    tiny: Any, checkpoint: Checkpoint, spec: ModelSpec
) -> None:
    checks = run(tiny, checkpoint, spec, available_bytes=GIB + 200_000)

    vision = checks[1]
    assert vision.name == "vision"
    assert vision.detail == "first 2 of 4 layers, no memory for the rest"
    assert {measure.tensor for measure in vision.measures} == {
        *(f"hidden_states.{layer}" for layer in range(3)),
        *(f"update of layer {layer}" for layer in range(2)),
    }
    assert all(check.passed for check in checks)


def run(
    tiny: Any, checkpoint: Checkpoint, spec: ModelSpec, available_bytes: int
) -> tuple[Check, ...]:
    return check_samples(
        Bundle.open(tiny.bundle),
        ReferenceParts(checkpoint, spec),
        spec,
        available_bytes,
        TOLERANCES["fp32"],
        report=lambda _: None,
    )
