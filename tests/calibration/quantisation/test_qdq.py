from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from atp_calibration.quantisation.linear_layers import linear_layers
from atp_calibration.quantisation.qdq import activation_scale, quantise
from atp_calibration.quantisation.ranges import RangeBackend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session


def test_a_scale_of_zeros_divides_nothing_by_zero() -> None:
    assert activation_scale(0.0) == 1.0


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    name = "two_dialects" if request.param == "fp32" else "two_dialects_fp16"
    return Bundle.open(request.getfixturevalue(name))


@pytest.fixture(scope="module")
def ranges(bundle: Bundle, photos: list[Path]) -> dict[str, dict[str, float]]:
    backend = RangeBackend()
    with Session(bundle, backend) as session:
        for photo in photos:
            session.ask("What is this?", [photo], GenerationOptions(max_new_tokens=2))
    return backend.ranges


def int8(bundle: Bundle, dialect: str, stage: str, ranges: Any, folder: Path) -> Path:
    graph = bundle.manifest.in_dialect(dialect).stage(stage).graph
    model = ir.load(bundle.path(graph))
    layers = len(list(linear_layers(model)))
    assert quantise(model, ranges.get(stage, {})) == layers
    path = folder / f"{stage}.onnx"
    ir.save(model, path, external_data=f"{stage}.data")
    return path


@pytest.mark.parametrize("dialect", ["portable", "native"])
@pytest.mark.parametrize("stage", ["vision", "segment_0", "segment_1"])
def test_int8_graphs_are_valid_and_close(
    bundle: Bundle, ranges: Any, tmp_path: Path, dialect: str, stage: str
) -> None:
    path = int8(bundle, dialect, stage, ranges, tmp_path)
    onnx.checker.check_model(str(path), full_check=True)

    before = bundle.path(bundle.manifest.in_dialect(dialect).stage(stage).graph)
    exact, found = (run(file, bundle) for file in (before, path))
    assert exact.shape == found.shape
    cosine = (exact * found).sum() / np.linalg.norm(exact) / np.linalg.norm(found)
    assert cosine > 0.99
    assert np.abs(exact - found).max() > 0  # it did become INT8


def run(path: Path, bundle: Bundle) -> np.ndarray:
    """The first output of a stage for inputs like those it was calibrated with."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    lengths = {"tokens": 24, "kept": 24, "past": 0, "rows": 2, "images": 1}
    feeds = {}
    for node in session.get_inputs():
        shape = [lengths[axis] if isinstance(axis, str) else axis for axis in node.shape]
        if node.type == "tensor(int64)":
            feeds[node.name] = np.arange(np.prod(shape)).reshape(shape)
        else:
            kind = np.float16 if node.type == "tensor(float16)" else np.float32
            feeds[node.name] = generator.normal(size=shape).astype(kind)
    return session.run(None, feeds)[0].astype(np.float64)


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_only_linear_layers_become_int8(
    bundle: Bundle, ranges: Any, tmp_path: Path, dialect: str
) -> None:
    path = int8(bundle, dialect, "segment_0", ranges, tmp_path)
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = Counter(node.op_type for node in graph.node)
    before = onnx.load(
        bundle.path(bundle.manifest.in_dialect(dialect).stage("segment_0").graph),
        load_external_data=False,
    ).graph
    # Of two layers: seven weights each, and four inputs that q, k, v and gate, up share in FP16.
    pairs = 8 if bundle.manifest.precision == "fp16" else 14
    assert kinds - Counter(node.op_type for node in before.node) == Counter(
        QuantizeLinear=pairs, DequantizeLinear=pairs + 14
    )
    for node in graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert types[node.input[2]] == onnx.TensorProto.INT8
        elif node.op_type == "MatMul" and node.input[1] in types:
            pytest.fail(f"{node.name} still has a {types[node.input[1]]} weight")


def test_zero_points_are_zero_as_tensorrt_demands(
    bundle: Bundle, ranges: Any, tmp_path: Path
) -> None:
    graph = onnx.load(int8(bundle, "portable", "segment_1", ranges, tmp_path)).graph
    arrays_by_name = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    points = [
        arrays_by_name[node.input[2]]
        for node in graph.node
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    assert points
    assert not any(point.any() for point in points)


def test_a_layer_without_a_range_is_named(bundle: Bundle) -> None:
    model = ir.load(bundle.path(bundle.manifest.stage("segment_0").graph))
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj"):
        quantise(model, {})


def test_a_graph_that_is_quantised_already_is_left_alone(
    bundle: Bundle, ranges: Any, tmp_path: Path
) -> None:
    model = ir.load(int8(bundle, "portable", "segment_1", ranges, tmp_path))
    nodes = [node.name for node in model.graph]
    assert quantise(model, ranges["segment_1"]) == 0
    assert [node.name for node in model.graph] == nodes


def test_onnx_runtime_computes_every_layer_of_an_fp32_bundle_in_int8(
    two_dialects: Path, photos: list[Path], tmp_path: Path
) -> None:
    bundle, backend = Bundle.open(two_dialects), RangeBackend()
    with Session(bundle, backend) as session:
        session.ask("What is this?", photos[:1], GenerationOptions(max_new_tokens=2))
    path = int8(bundle, "portable", "segment_0", backend.ranges, tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["MatMulIntegerToFloat"] == 14
    assert kinds["DequantizeLinear"] == 0
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    points = {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert points == {onnx.TensorProto.UINT8}  # signed activations take its slow path
