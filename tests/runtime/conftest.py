"""A bundle of hand-made graphs that keep the stage contract and can be computed in NumPy.

A layer l of these graphs turns hidden states h at positions p into
    key = (0.5 + 0.1 l) h + 0.01 p        value = 0.3 h - 0.02 p + 0.1 l
    h' = tanh(h + (sum of keys up to here - 0.5 * sum of values up to here) / 16)
where "up to here" is the past as far as it is filled and the new tokens as far as the token
itself. What is behind the filled past is multiplied by zero, so NaN must not be there. A segment's
scores are products of weighted sums of its last layer's input with that layer's keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from atp_runtime.manifest import (
    SCHEMA_VERSION,
    AxisRange,
    Embedding,
    FileRecord,
    Manifest,
    Provenance,
    Stage,
    TensorSpec,
    TextModel,
    VisionModel,
    dump_manifest,
)
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.tensor_names import cache_names

KV_HEADS, HEAD_DIM, VOCABULARY, MAX_POSITIONS = 2, 4, 11, 96
HIDDEN = KV_HEADS * HEAD_DIM
IMAGE_TOKEN = 9
SEGMENTS = ((0, 2), (2, 3), (3, 5))
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@pytest.fixture(scope="session")
def hand_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a bundle with segments of 2, 1 and 2 layers and two pruning points."""
    return write_hand_made(tmp_path_factory.mktemp("bundle") / "hand-made")


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return write_hand_made(tmp_path / "hand-made")


@pytest.fixture(scope="session")
def head() -> np.ndarray:
    """The head's weight, [hidden, vocabulary]."""
    return head_weight()


@pytest.fixture
def write_files() -> Callable[[Path, Manifest], None]:
    """Writes a manifest with the sizes and hashes of the files that are there."""
    return write_manifest


def write_hand_made(root: Path) -> Path:
    (root / "onnx").mkdir(parents=True)
    (root / "weights").mkdir()
    stages = []
    for number, layers in enumerate(SEGMENTS):
        last = number == len(SEGMENTS) - 1
        stages.append(_segment(root, f"segment_{number}", layers, pruned=not last))
    stages.append(_head(root))
    np.save(root / "weights/embed_tokens.npy", embedding_table())
    manifest = Manifest(
        format="atp-bundle",
        schema_version=SCHEMA_VERSION,
        precision="float32",
        dialect="portable",
        opset=18,
        text=TextModel(
            layers=SEGMENTS[-1][1],
            hidden=HIDDEN,
            heads=KV_HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            intermediate=HIDDEN,
            vocabulary=VOCABULARY,
            max_positions=MAX_POSITIONS,
        ),
        vision=VisionModel(
            image_size=(8, 8),
            grid=(2, 2),
            tokens=4,
            prefix_tokens=0,
            skipped_patches=0,
            image_token_id=IMAGE_TOKEN,
        ),
        embedding=Embedding("weights/embed_tokens.npy", "float32"),
        axes={"tokens": AxisRange(1, 8, MAX_POSITIONS)},
        stages=tuple(stages),
        processor="processor",
        pruning_weights=None,
        provenance=Provenance("hand-made", "", "", {}),
        files={},
    )
    write_manifest(root, manifest)
    return root


def write_manifest(root: Path, manifest: Manifest) -> None:
    files = {
        path.relative_to(root).as_posix(): FileRecord(
            path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    fields = {**vars(manifest), "files": files}
    (root / "manifest.json").write_text(dump_manifest(Manifest(**fields)))


def embedding_table() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)


def head_weight() -> np.ndarray:
    return np.random.default_rng(6).normal(size=(HIDDEN, VOCABULARY)).astype(np.float32)


class GraphWriter:
    """Collects the nodes and constants of one graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, dtype=np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def write(
        self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        values = [
            [helper.make_tensor_value_info(x.name, _TYPES[x.dtype], x.shape) for x in specs]
            for specs in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, path.stem, *values, self.constants)
        opset = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def _segment(root: Path, name: str, layers: tuple[int, int], *, pruned: bool) -> Stage:
    inputs = [
        TensorSpec("hidden_states", "float32", (1, "tokens", HIDDEN)),
        TensorSpec("keep_indices", "int64", ("kept",)),
        TensorSpec("position_ids", "int64", (1, "kept")),
        TensorSpec("past_length", "int64", (1,)),
    ]
    outputs = [TensorSpec("hidden_states_out", "float32", (1, "kept", HIDDEN))]
    for layer in range(*layers):
        past_key, past_value, key, value = cache_names(layer)
        for past, new in ((past_key, key), (past_value, value)):
            inputs.append(TensorSpec(past, "float32", (1, "past", KV_HEADS, HEAD_DIM)))
            outputs.append(TensorSpec(new, "float32", (1, "kept", KV_HEADS, HEAD_DIM)))
    point = None
    if pruned:
        inputs += [
            TensorSpec("visual_weights", "float32", ("kept",)),
            TensorSpec("text_rows", "int64", ("rows",)),
            TensorSpec("text_weights", "float32", ("rows",)),
        ]
        outputs += [
            TensorSpec(f"scores.{kind}", "float32", ("kept",)) for kind in ("self", "cross")
        ]
        point = PruningPoint(layers[1], "top_k", {"keep": 2})
    graph = f"onnx/{name}.onnx"
    stage = Stage(name, "segment", graph, (), tuple(inputs), tuple(outputs), layers, point)
    writer = GraphWriter()
    _write_layers(writer, layers, pruned=pruned)
    writer.write(root / graph, stage.inputs, stage.outputs)
    return stage


def _write_layers(graph: GraphWriter, layers: tuple[int, int], *, pruned: bool) -> None:
    hidden = graph.add("Gather", "hidden_states", "keep_indices", axis=1)
    position = graph.add("Cast", "position_ids", to=TensorProto.FLOAT)
    position = graph.add("Unsqueeze", position, graph.integers(2))
    filled = _filled(graph, cache_names(layers[0])[0])
    for layer in range(*layers):
        past_key, past_value, new_key, new_value = cache_names(layer)
        key = graph.add(
            "Add",
            graph.add("Mul", hidden, graph.number(0.5 + 0.1 * layer)),
            graph.add("Mul", position, graph.number(0.01)),
        )
        value = graph.add(
            "Add",
            graph.add("Mul", hidden, graph.number(0.3)),
            graph.add(
                "Add",
                graph.add("Mul", position, graph.number(-0.02)),
                graph.number(0.1 * layer),
            ),
        )
        keys = _sum_so_far(graph, key, past_key, new_key, filled)
        values = _sum_so_far(graph, value, past_value, new_value, filled)
        mixed = graph.add("Sub", keys, graph.add("Mul", values, graph.number(0.5)))
        mixed = graph.add("Div", mixed, graph.number(16))
        entered, last = hidden, layer == layers[1] - 1
        hidden = graph.add("Add", hidden, mixed)
        hidden = graph.add("Tanh", hidden, output="hidden_states_out" if last else "")
    if pruned:
        _write_scorer(graph, entered, key)


def _filled(graph: GraphWriter, past: str) -> str:
    """1 for positions of the past that are filled, else 0, as [past, 1, 1]."""
    zero, one = (graph.constant(np.array(it, dtype=np.int64)) for it in (0, 1))
    positions = graph.add("Shape", past, start=1, end=2)
    positions = graph.add("Range", zero, graph.add("Squeeze", positions), one)
    filled = graph.add("Less", positions, "past_length")
    filled = graph.add("Cast", filled, to=TensorProto.FLOAT)
    return graph.add("Unsqueeze", filled, graph.integers(1, 2))


def _sum_so_far(graph: GraphWriter, new: str, past: str, present: str, filled: str) -> str:
    graph.add("Reshape", new, graph.integers(1, -1, KV_HEADS, HEAD_DIM), output=present)
    total = graph.add("ReduceSum", graph.add("Mul", past, filled), graph.integers(1))
    total = graph.add("Reshape", total, graph.integers(1, 1, HIDDEN))
    axis = graph.constant(np.array(1, dtype=np.int64))
    return graph.add("Add", graph.add("CumSum", new, axis), total)


def _write_scorer(graph: GraphWriter, query: str, key: str) -> None:
    rows = graph.add("Squeeze", query, graph.integers(0))
    keys = graph.add("Squeeze", key, graph.integers(0))
    visual = graph.add("MatMul", "visual_weights", rows)
    graph.add("MatMul", keys, visual, output="scores.self")
    text = graph.add("Gather", rows, "text_rows", axis=0)
    text = graph.add("MatMul", "text_weights", text)
    graph.add("MatMul", keys, text, output="scores.cross")


def _head(root: Path) -> Stage:
    inputs = (TensorSpec("hidden_states", "float32", (1, "tokens", HIDDEN)),)
    outputs = (TensorSpec("logits", "float32", (1, VOCABULARY)),)
    graph = GraphWriter()
    last = graph.add("Gather", "hidden_states", graph.integers(-1), axis=1)
    last = graph.add("Squeeze", last, graph.integers(1))
    graph.add("MatMul", last, graph.constant(head_weight()), output="logits")
    graph.write(root / "onnx/head.onnx", inputs, outputs)
    return Stage("head", "head", "onnx/head.onnx", (), inputs, outputs)
