import gc
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from atp_runtime.backends import Backend, DeviceArray, LoadedStage, open_backend
from atp_runtime.backends.onnxruntime_session import has_opset_24, load_library, session_options
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError, MachineError
from atp_runtime.manifest import Manifest, Stage, TensorSpec, read_manifest

WriteFiles = Callable[[Path, Manifest], None]
SUM_STAGE = Stage(
    "sum",
    "head",
    "onnx/sum.onnx",
    (),
    (TensorSpec("past", "float16", (1, "past", 2)), TensorSpec("new", "float16", (1, "kept", 2))),
    (TensorSpec("total", "float16", (1, "kept", 2)),),
)


STATUS = Path("/proc/self/status")


@pytest.fixture
def backend() -> Backend:
    return open_backend(threads=1)


def save_graph(path: Path, nodes: list[onnx.NodeProto], stage: Stage, *, opset: int = 18) -> None:
    types = {
        "float32": TensorProto.FLOAT,
        "float16": TensorProto.FLOAT16,
        "int64": TensorProto.INT64,
    }
    values = [
        [helper.make_tensor_value_info(x.name, types[x.dtype], x.shape) for x in specs]
        for specs in (stage.inputs, stage.outputs)
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "graph", *values, [axis])
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    """A bundle with one more graph: total = new + sum of past, in float16."""
    nodes = [
        helper.make_node("ReduceSum", ["past", "axis"], ["sum"]),
        helper.make_node("Add", ["new", "sum"], ["total"]),
    ]
    save_graph(own_bundle / SUM_STAGE.graph, nodes, SUM_STAGE)
    return Bundle.open(own_bundle)


def half(values: list[list[float]]) -> np.ndarray:
    return np.array(values, dtype=np.float16).reshape(1, -1, 2)


def run_sum(
    backend: Backend, stage: LoadedStage, past: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, DeviceArray]:
    total = backend.allocate(new.nbytes).array(new.shape, "float16")
    inputs = {"past": backend.upload(past), "new": backend.upload(new)}
    stage.run(inputs, {"total": total})
    return backend.download(total), total


def test_run_writes_the_output_where_it_was_told(bundle: Bundle, backend: Backend) -> None:
    stage = backend.load(bundle, SUM_STAGE)
    buffer = backend.allocate(64)
    backend.write(buffer.array((32,), "float16"), np.zeros(32, dtype=np.float16))
    inputs = {
        "past": backend.upload(half([[1, 2], [3, 4]])),
        "new": backend.upload(half([[10, 20]])),
    }
    stage.run(inputs, {"total": buffer.array((1, 1, 2), "float16", offset=6)})
    written = backend.download(buffer.array((32,), "float16"))
    assert written[3:5].tolist() == [14, 26]
    assert np.count_nonzero(written) == 2


def test_run_takes_a_past_of_no_positions(bundle: Bundle, backend: Backend) -> None:
    stage = backend.load(bundle, SUM_STAGE)
    total, _ = run_sum(backend, stage, half([]), half([[1, 2], [3, 4]]))
    assert total.tolist() == [[[1, 2], [3, 4]]]


def test_run_sees_new_contents_when_the_same_array_is_given_again(
    bundle: Bundle, backend: Backend
) -> None:
    stage = backend.load(bundle, SUM_STAGE)
    past, new = backend.upload(half([[1, 1]])), backend.upload(half([[1, 1]]))
    total = backend.allocate(4).array((1, 1, 2), "float16")
    stage.run({"past": past, "new": new}, {"total": total})
    backend.write(new, half([[5, 6]]))
    stage.run({"past": past, "new": new}, {"total": total})
    assert backend.download(total).tolist() == [[[6, 7]]]


def test_run_follows_when_shapes_and_addresses_change(bundle: Bundle, backend: Backend) -> None:
    stage = backend.load(bundle, SUM_STAGE)
    results = [
        run_sum(backend, stage, half([[1, 1]] * length), half([[0, 0]]))[0].tolist()
        for length in (3, 0, 1)
    ]
    assert results == [[[[3, 3]]], [[[0, 0]]], [[[1, 1]]]]


def test_run_counts_its_calls_and_moves_nothing(bundle: Bundle, backend: Backend) -> None:
    stage = backend.load(bundle, SUM_STAGE)
    past, new = backend.upload(half([[1, 1]])), backend.upload(half([[1, 1]]))
    total = backend.allocate(4).array((1, 1, 2), "float16")
    before = replace(backend.traffic)
    stage.run({"past": past, "new": new}, {"total": total})
    assert backend.traffic == replace(before, stage_calls=before.stage_calls + 1)


@pytest.mark.parametrize(
    ("past", "new", "total"),
    [
        (half([[1, 1]]), half([[1, 1]]), (1, 2, 2)),
        (np.zeros((1, 1, 3), np.float16), half([[1, 1]]), (1, 1, 2)),
        (np.zeros((1, 1, 2), np.float32), half([[1, 1]]), (1, 1, 2)),
    ],
)
def test_run_names_the_stage_when_an_array_does_not_fit(
    bundle: Bundle, backend: Backend, past: np.ndarray, new: np.ndarray, total: tuple[int, ...]
) -> None:
    stage = backend.load(bundle, SUM_STAGE)
    inputs = {"past": backend.upload(past), "new": backend.upload(new)}
    with pytest.raises(InputError, match="stage sum"):
        stage.run(inputs, {"total": backend.allocate(64).array(total, "float16")})


def test_run_works_again_after_it_failed(bundle: Bundle, backend: Backend) -> None:
    stage = backend.load(bundle, SUM_STAGE)
    wrong = {"past": backend.upload(np.zeros((1, 1, 3), np.float16))}
    with pytest.raises(InputError):
        stage.run(wrong, {"total": backend.allocate(4).array((1, 1, 2), "float16")})
    total, _ = run_sum(backend, stage, half([[1, 1]]), half([[1, 2]]))
    assert total.tolist() == [[[2, 3]]]


def test_run_says_that_memory_is_short_when_an_operator_cannot_allocate(
    own_bundle: Path, backend: Backend
) -> None:
    sizes, out = TensorSpec("sizes", "int64", (2,)), TensorSpec("out", "float32", ("a", "b"))
    stage = Stage("wide", "head", "onnx/wide.onnx", (), (sizes,), (out,))
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Expand", ["one", "sizes"], ["wide"]),
        helper.make_node("Exp", ["wide"], ["exp"]),
        helper.make_node("ReduceSum", ["exp", "axis"], ["out"]),
    ]
    save_graph(own_bundle / stage.graph, nodes, stage)
    loaded = backend.load(Bundle.open(own_bundle), stage)
    inputs = {"sizes": backend.upload(np.array([1 << 25, 1 << 25]))}
    with pytest.raises(MachineError, match="stage wide: not enough memory"):
        loaded.run(inputs, {"out": backend.allocate(4).array((1, 1), "float32")})


def test_load_names_the_stage_when_the_graph_is_damaged(bundle: Bundle, backend: Backend) -> None:
    (bundle.root / SUM_STAGE.graph).write_bytes(b"\x08\x07damaged")
    with pytest.raises(InputError, match="stage sum") as raised:
        backend.load(bundle, SUM_STAGE)
    assert "ONNXRuntimeError" not in str(raised.value)
    assert "atp-export verify" in raised.value.fix


def test_load_suggests_an_update_when_the_opset_is_too_new(
    own_bundle: Path, backend: Backend
) -> None:
    nodes = [helper.make_node("Add", ["new", "past"], ["total"])]
    save_graph(own_bundle / SUM_STAGE.graph, nodes, SUM_STAGE, opset=99)
    with pytest.raises(InputError, match=r"(?i)opset 99") as raised:
        backend.load(Bundle.open(own_bundle), SUM_STAGE)
    assert "update onnxruntime" in raised.value.fix


def without(specs: tuple[TensorSpec, ...], name: str) -> tuple[TensorSpec, ...]:
    return tuple(spec for spec in specs if spec.name != name)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"inputs": without(SUM_STAGE.inputs, "past")}, "past"),
        ({"outputs": (TensorSpec("total", "float32", (1, "kept", 2)),)}, "total"),
        ({"outputs": (*SUM_STAGE.outputs, TensorSpec("more", "int64", (1,)))}, "more"),
    ],
)
def test_load_names_the_tensor_when_graph_and_manifest_differ(
    bundle: Bundle,
    backend: Backend,
    changed: Mapping[str, tuple[TensorSpec, ...]],
    named: str,
) -> None:
    with pytest.raises(InputError, match=named):
        backend.load(bundle, replace(SUM_STAGE, **changed))


def test_backend_says_how_to_install_onnx_runtime_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MachineError, match="ONNX Runtime cannot be loaded") as raised:
        open_backend()
    assert "pip install onnxruntime" in raised.value.fix


@pytest.mark.parametrize("threads", [0, -2, 99_999])
def test_backend_raises_when_threads_are_more_than_processors_or_none(threads: int) -> None:
    with pytest.raises(InputError, match=f"threads: {threads}"):
        open_backend(threads=threads)


@pytest.mark.skipif(not STATUS.is_file(), reason="the system does not tell memory")
@pytest.mark.parametrize("packed", [True, False])
def test_weights_are_copied_when_they_are_packed_and_else_stay_in_their_file(
    own_bundle: Path, packed: bool
) -> None:
    side = 4096
    weight = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    stage = Stage(
        "wide",
        "head",
        "onnx/wide.onnx",
        ("onnx/wide.data",),
        (TensorSpec("x", "float32", ("tokens", side)),),
        (TensorSpec("y", "float32", ("tokens", side)),),
    )
    save_graph(own_bundle / stage.graph, [helper.make_node("MatMul", ["x", "w"], ["y"])], stage)
    model = onnx.load(own_bundle / stage.graph)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, own_bundle / stage.graph, save_as_external_data=True, location="wide.data")
    del model
    backend = open_backend(threads=1, packed=packed)
    x, y = (backend.upload(np.ones((2, side), dtype=np.float32)) for _ in range(2))
    before = anonymous_bytes()
    loaded = backend.load(Bundle.open(own_bundle), stage)
    loaded.run({"x": x}, {"y": y})
    assert (anonymous_bytes() - before > 0.9 * weight.nbytes) is packed
    np.testing.assert_allclose(backend.download(y)[0], weight.sum(0), rtol=1e-3, atol=1e-2)


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    (line,) = (it for it in STATUS.read_text().splitlines() if it.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def test_closed_stage_holds_no_array(bundle: Bundle, backend: Backend) -> None:
    stage = backend.load(bundle, SUM_STAGE)
    _, total = run_sum(backend, stage, half([]), half([[1, 1]]))
    watched = weakref.ref(total)
    del total
    gc.collect()
    assert watched() is not None
    stage.close()
    gc.collect()
    assert watched() is None


def test_hand_made_stages_load_as_their_manifest_declares(hand_made: Path) -> None:
    manifest = read_manifest(hand_made)
    backend, bundle = open_backend(threads=1), Bundle.open(hand_made)
    for stage in manifest.stages:
        backend.load(bundle, stage).close()


def test_the_native_dialect_is_run_where_the_bundle_holds_it(bundle: Bundle) -> None:
    backend, held = open_backend(threads=1), bundle.manifest
    assert backend.fastest_view(bundle) is bundle
    stages = tuple(replace(it, other_graphs={"native": f"{it.name}.24"}) for it in held.stages)
    manifest = replace(held, stages=stages, other_dialects={"native": 24})
    seen = backend.fastest_view(replace(bundle, manifest=manifest)).manifest
    assert {stage.graph for stage in seen.stages} == {f"{it.name}.24" for it in held.stages}


@pytest.mark.parametrize(
    ("version", "known"), [("1.23.2", False), ("1.24.0", True), ("1.31.1", True), ("2.0.0", True)]
)
def test_opset_24_came_with_1_24(version: str, known: bool) -> None:
    assert has_opset_24(SimpleNamespace(__version__=version)) is known


@pytest.mark.parametrize("dtype", [TensorProto.INT4, TensorProto.INT8])
def test_weights_of_few_bits_are_multiplied_as_integers(dtype: int, tmp_path: Path) -> None:
    values = np.zeros((64, 32), np.int8)
    weight = helper.make_tensor("weight", dtype, values.shape, values.ravel().tolist())
    scales = numpy_helper.from_array(np.ones((2, 32), np.float32), "scales")
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scales"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])
    graph = helper.make_graph(nodes, "graph", [x], [y], [weight, scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    library = load_library()
    options = session_options(library, threads=1)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    library.InferenceSession(model.SerializeToString(), options)
    (product,) = onnx.load(tmp_path / "optimised.onnx").graph.node
    chosen = {it.name: it.i for it in product.attribute}
    assert product.op_type == "MatMulNBits"
    assert chosen["accuracy_level"] == 4
