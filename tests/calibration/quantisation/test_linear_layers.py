from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from atp_calibration.quantisation.linear_layers import linear_layers
from atp_runtime.manifest import read_manifest

BLOCK = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def names(bundle: Path, stage: str, dialect: str) -> list[str]:
    graph = read_manifest(bundle).in_dialect(dialect).stage(stage).graph
    return [layer.name for layer in linear_layers(ir.load(bundle / graph))]


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_a_segments_linear_layers_are_its_projections(two_dialects: Path, dialect: str) -> None:
    expected = {
        f"model.language_model.layers.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in (*BLOCK, *FEED_FORWARD)
    }
    found = names(two_dialects, "segment_0", dialect)
    assert len(found) == len(expected)
    assert set(found) == expected


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_the_towers_are_linear_layers_and_the_projectors_are_not(
    two_dialects: Path, dialect: str
) -> None:
    found = names(two_dialects, "vision", dialect)
    assert found
    assert all(name.startswith("model.vision_tower.") for name in found)


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_the_head_is_one_if_it_is_asked_for(two_dialects: Path, dialect: str) -> None:
    assert names(two_dialects, "head", dialect) == []
    graph = read_manifest(two_dialects).in_dialect(dialect).stage("head").graph
    (head,) = linear_layers(ir.load(two_dialects / graph), frozenset({"head"}))
    assert head.name == "lm_head.weight"
    assert head.transposed
    assert head.channels == read_manifest(two_dialects).text.hidden
