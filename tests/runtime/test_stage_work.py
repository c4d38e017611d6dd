"""What a stage has to do, held against what its graph says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.runtime.latency.answering_bundle import VISUAL, write_answering

from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.stage_work import stage_work


@pytest.fixture(scope="module")
def tiny_manifest(tiny) -> Manifest:
    return read_manifest(tiny.bundle)


def linear_weights(path: Path) -> int:
    """Elements of the matrices of a graph's products."""
    model = onnx.load(path)
    weights = {it.name: numpy_helper.to_array(it).size for it in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    return sum(weights.get(name, 0) for node in products for name in node.input)


@pytest.mark.parametrize("name", ["segment_0", "segment_3"])
def test_a_token_meets_every_matrix_once(tiny, tiny_manifest: Manifest, name: str) -> None:
    stage = tiny_manifest.stage(name)
    one, two = (stage_work(tiny_manifest, stage, tokens).operations for tokens in (1, 2))
    elements = linear_weights(tiny.bundle / stage.graph)
    text = tiny_manifest.text
    attention = 4 * text.heads * text.head_dim * (stage.layers[1] - stage.layers[0])
    assert one == 2 * elements + attention  # which grows with the square of the tokens
    assert two == 2 * one + 2 * attention


def test_the_head_meets_every_row_of_the_table_once(tiny, tiny_manifest: Manifest) -> None:
    table = np.load(tiny.bundle / tiny_manifest.embedding.file)  # as large as the head
    work = stage_work(tiny_manifest, tiny_manifest.stage("head"), 1)
    assert work.operations == 2 * table.size
    assert table.nbytes <= work.moved <= table.nbytes + 4096  # the norm's page


def test_a_past_adds_attention_and_reading_it(tiny_manifest: Manifest) -> None:
    stage, text = tiny_manifest.stage("segment_1"), tiny_manifest.text
    layers = stage.layers[1] - stage.layers[0]
    fresh, later = (stage_work(tiny_manifest, stage, 1, past) for past in (0, 50))
    assert later.operations - fresh.operations == layers * 4 * 50 * text.heads * text.head_dim
    assert later.moved - fresh.moved == layers * 50 * 2 * text.kv_heads * text.head_dim * 4


def test_a_tower_s_work_is_told_from_its_weights(tmp_path: Path) -> None:
    manifest = read_manifest(write_answering(tmp_path / "bundle"))
    stage = manifest.stage("vision")
    work = stage_work(manifest, stage, VISUAL)
    assert work.operations == 2 * VISUAL * work.moved / 4
