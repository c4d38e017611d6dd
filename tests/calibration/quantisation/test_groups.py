from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from atp_calibration.quantisation.groups import Fold, Group, find_groups
from atp_calibration.quantisation.shared_heads import SharedHeads
from atp_runtime.manifest import read_manifest

LAYER = "model.language_model.layers.0."
DIALECTS = ("portable", "native")


def groups(bundle: Path, stage: str, dialect: str) -> dict[str, Group]:
    graph = read_manifest(bundle).in_dialect(dialect).stage(stage).graph
    return {group.first: group for group in find_groups(ir.load(bundle / graph))}


@pytest.fixture(params=["two_dialects", "two_dialects_fp16"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.mark.parametrize("stage", ["vision", "segment_0", "segment_1"])
def test_dialects_and_precisions_have_the_same_groups(
    two_dialects: Path, two_dialects_fp16: Path, stage: str
) -> None:
    first, *others = (
        groups(path, stage, dialect)
        for path in (two_dialects, two_dialects_fp16)
        for dialect in DIALECTS
    )
    assert first
    assert all(other == first for other in others)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scales_go_into_norms_and_into_the_layer_before_a_gate(bundle: Path, dialect: str) -> None:
    found = groups(bundle, "segment_0", dialect)
    attention = [f"{LAYER}self_attn.{name}_proj.weight" for name in "qkv"]
    assert found[attention[0]].layers == tuple(attention)
    assert found[attention[0]].fold == Fold((f"{LAYER}input_layernorm.weight",))
    gate, up, down = (f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
    assert found[gate].layers == (gate, up)
    assert found[gate].fold == Fold((f"{LAYER}post_attention_layernorm.weight",))
    assert found[down].fold == Fold((), columns=up)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scales_of_what_attention_mixed_go_into_the_values(bundle: Path, dialect: str) -> None:
    """Four query heads of width 16 share two heads of values."""
    found = groups(bundle, "segment_0", dialect)[f"{LAYER}self_attn.o_proj.weight"].fold
    assert found == Fold((), f"{LAYER}self_attn.v_proj.weight", SharedHeads(2, 16))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_towers_norms_take_scales_with_their_biases(bundle: Path, dialect: str) -> None:
    layer = "model.vision_tower.encoder.layers.0."
    found = groups(bundle, "vision", dialect)
    norm = f"{layer}layer_norm1"
    expected = Fold((f"{norm}.weight", f"{norm}.bias"))
    assert found[f"{layer}self_attn.q_proj.weight"].fold == expected
    assert found[f"{layer}mlp.fc2.weight"].fold is None
    values = f"{layer}self_attn.v_proj"
    mixed = found[f"{layer}self_attn.out_proj.weight"].fold
    assert mixed == Fold((f"{values}.bias",), f"{values}.weight", SharedHeads(1, 16))


def test_a_norm_that_something_else_reads_takes_no_scale(two_dialects: Path) -> None:
    graph = read_manifest(two_dialects).in_dialect("native").stage("segment_0").graph
    model = ir.load(two_dialects / graph)
    norm = next(node for node in model.graph if node.op_type == "RMSNormalization")
    watcher = ir.node("Abs", [norm.outputs[0]])
    model.graph.append(watcher)
    assert find_groups(model)[0].fold is None


def test_a_bias_before_the_gate_takes_the_scale_with_its_columns() -> None:
    """silu(x Wg) * (x Wu + b), read by Wd, as in a LLaMA with biases in its MLP."""
    entered = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 4]))
    stored = {
        name: ir.Value(name=name, const_value=ir.tensor(np.ones(shape, np.float32), name=name))
        for name, shape in (("gate", (4, 8)), ("up", (4, 8)), ("bias", (8,)), ("down", (8, 4)))
    }
    for value in stored.values():
        assert value.const_value is not None
        value.shape = ir.Shape(value.const_value.shape)
    gate = ir.node("MatMul", [entered, stored["gate"]])
    opened = ir.node("Sigmoid", gate.outputs)
    up = ir.node("MatMul", [entered, stored["up"]])
    biased = ir.node("Add", [up.outputs[0], stored["bias"]])
    product = ir.node("Mul", [opened.outputs[0], biased.outputs[0]])
    down = ir.node("MatMul", [product.outputs[0], stored["down"]])
    graph = ir.Graph(
        [entered],
        down.outputs,
        nodes=[gate, opened, up, biased, product, down],
        initializers=list(stored.values()),
        opset_imports={"": 18},
    )
    first, second = find_groups(ir.Model(graph, ir_version=10))
    assert first == Group(("gate", "up"), 4, None)
    assert second == Group(("down",), 8, Fold(("bias",), columns="up"))
