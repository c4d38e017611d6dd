from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from atp_export.check.lint import lint
from atp_models.random_configs import tiny_config
from atp_runtime.manifest import read_manifest


@pytest.fixture(scope="module")
def bundle(export_bundle: Any) -> Path:
    config = tiny_config(kv_heads=2)
    return Path(export_bundle(config, precision="fp16", dialect="both", prune_at=(2,)).bundle)


def complaints(bundle: Path, dialect: str) -> dict[str, tuple[str, ...]]:
    manifest = read_manifest(bundle).in_dialect(dialect)
    return {
        stage.name: lint(onnx.load(bundle / stage.graph, load_external_data=False))
        for stage in manifest.stages
    }


def test_nothing_is_said_of_the_portable_dialect(bundle: Path) -> None:
    found = complaints(bundle, "portable")
    assert found.keys() == {"vision", "segment_0", "segment_1", "head"}
    assert not any(found.values())


def test_the_native_dialect_is_too_new(bundle: Path) -> None:
    found = complaints(bundle, "native")
    assert all("opset 24: 20 is the newest" in lines for lines in found.values())
    assert {"operator Attention", "operator RotaryEmbedding", "operator RMSNormalization"} <= set(
        found["segment_0"]
    )


def small_model(node: onnx.NodeProto, *stored: onnx.TensorProto, **changes: Any) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    axes = helper.make_tensor_value_info("axes", TensorProto.INT64, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [value, axes], [result], list(stored))
    opsets = [helper.make_opsetid(changes.pop("domain", ""), changes.pop("opset", 18))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=changes.pop("ir_version", 10))


RELU = helper.make_node("Relu", ["x"], ["y"], name="relu")


def test_an_older_graph_passes() -> None:
    assert lint(small_model(RELU, opset=9, ir_version=3)) == ()


def test_int4_weights_need_the_opset_that_has_them() -> None:
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "scale"], ["y"], name="weights")],
        "graph",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [
            helper.make_tensor("w", TensorProto.INT4, [2], [1, -2]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5]),
        ],
    )
    for opset, expected in ((21, ()), (23, ("opset 23: 20 is the newest",))):
        opsets = [helper.make_opsetid("", opset)]
        assert lint(helper.make_model(graph, opset_imports=opsets, ir_version=10)) == expected


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (small_model(RELU, opset=21), "opset 21"),
        (small_model(RELU, ir_version=11), "IR version 11"),
        (small_model(RELU, domain="com.microsoft", opset=1), "'com.microsoft'"),
        (small_model(helper.make_node("Unique", ["x"], ["y"])), "operator Unique"),
        (
            small_model(helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean")),
            "mean: input 1 of ReduceMean is computed",
        ),
        (
            small_model(
                helper.make_node("LayerNormalization", ["x", "w"], ["y", "m"], name="norm"),
                helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0] * 4),
            ),
            "norm: LayerNormalization with more than one output",
        ),
        (
            small_model(RELU, helper.make_tensor("w", TensorProto.UINT16, [1], [1])),
            "w: type UINT16",
        ),
    ],
)
def test_what_the_older_parser_lacks_is_named(model: onnx.ModelProto, complaint: str) -> None:
    (line,) = lint(model)
    assert complaint in line


def test_a_stored_axis_passes() -> None:
    node = helper.make_node("ReduceMean", ["x", "a"], ["y"], name="mean")
    assert lint(small_model(node, helper.make_tensor("a", TensorProto.INT64, [1], [0]))) == ()


def test_a_complaint_is_made_once() -> None:
    nodes = [helper.make_node("Unique", ["x"], [f"y{n}"]) for n in range(3)]
    model = small_model(nodes[0])
    model.graph.node.extend(nodes[1:])
    assert lint(model) == ("operator Unique",)
