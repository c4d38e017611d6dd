"""Graphs that were opened up compute what they did before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from atp_export.parity.probes import (
    hidden_name,
    query_name,
    single_layer,
    tower_layers,
    with_probes,
)
from atp_export.parity.samples import picture
from atp_export.parity.sessions import Arrays, GraphSession
from atp_export.parity.stages import scorer_inputs
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Stage, read_manifest
from atp_runtime.tensor_names import cache_names

TOKENS, PAST = 9, 4
VISUAL = np.array([False, True, True, True, True, False, False])
ASKED = np.arange(7) > 4


@pytest.fixture(params=["grouped", "half_native"])
def bundle(request: pytest.FixtureRequest) -> Path:
    made: Any = request.getfixturevalue(request.param)
    path: Path = made.bundle
    return path


def segment(bundle: Path) -> Stage:
    return read_manifest(bundle).segments[0]


def segment_inputs() -> Arrays:
    generator = np.random.default_rng(0)
    inputs: Arrays = {
        "hidden_states": generator.normal(size=(1, TOKENS, 64)).astype(np.float32),
        "keep_indices": np.array([0, 1, 3, 4, 5, 7, 8]),
        "position_ids": np.array([[4, 5, 8, 9, 11, 14, 15]]),
        "past_length": np.array([PAST]),
        **scorer_inputs(VISUAL, ASKED),
    }
    for layer in range(3):
        for name in cache_names(layer)[:2]:
            inputs[name] = generator.normal(size=(1, PAST, 2, 16)).astype(np.float32)
    return inputs


def session(model: ir.Model, bundle: Path) -> GraphSession:
    return GraphSession(model, bundle / "onnx")


def test_probes_add_outputs_and_change_none(bundle: Path) -> None:
    stage = segment(bundle)
    path = bundle / stage.graph

    plain = session(ir.load(path), bundle).run(segment_inputs())
    probed = session(with_probes(path, stage), bundle).run(segment_inputs())

    added = {hidden_name(1), hidden_name(2), *map(query_name, range(3))}
    assert probed.keys() - plain.keys() == added
    for name, value in plain.items():
        np.testing.assert_allclose(probed[name], value, rtol=2e-3, atol=2e-3)


def test_single_layers_in_a_row_are_the_segment(bundle: Path) -> None:
    stage = segment(bundle)
    path = bundle / stage.graph
    inputs = segment_inputs()
    whole = session(with_probes(path, stage), bundle).run(inputs)

    parts: Arrays = {}
    for layer in range(3):
        parts |= session(single_layer(path, stage, layer), bundle).run({**inputs, **parts})

    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=2e-3, atol=2e-3)


def test_a_single_layer_needs_no_weights_of_others(bundle: Path) -> None:
    stage = segment(bundle)

    model = single_layer(bundle / stage.graph, stage, 1)

    weights = [name for name in model.graph.initializers if "language_model.layers" in name]
    assert weights
    assert all(".layers.1." in name for name in weights)


def test_tower_states_are_those_of_the_whole_tower(bundle: Path) -> None:
    stage = read_manifest(bundle).stage("vision")
    path = bundle / stage.graph
    pixels = {"pixel_values": picture((32, 32), 0)[np.newaxis]}

    whole = session(with_probes(path, stage), bundle).run(pixels)
    first = session(tower_layers(path, stage, 1), bundle).run(pixels)

    assert whole.keys() == {"image_features", *map(hidden_name, range(4))}
    assert first.keys() == {hidden_name(0), hidden_name(1)}
    for name, value in first.items():
        np.testing.assert_allclose(value, whole[name], rtol=2e-3, atol=2e-3)


def test_the_head_is_left_alone(bundle: Path) -> None:
    stage = read_manifest(bundle).stage("head")

    model = with_probes(bundle / stage.graph, stage)

    assert [value.name for value in model.graph.outputs] == ["logits"]


def test_a_graph_without_layers_is_refused_by_name(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    head = bundle / manifest.stage("head").graph

    with pytest.raises(CheckFailedError, match=r"layers\.0\.mlp\.down_proj"):
        with_probes(head, segment(bundle))
