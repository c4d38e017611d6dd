"""A bundle small enough to be built in seconds, and manifests of bundles that need not exist.

The graphs are made by hand: they have the inputs and outputs of real stages, gather what is kept
and read their weights from files beside them, and compute something simple in between.
"""

# ruff: noqa: PLC0415 - as in the conftest above this one

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from atp_runtime.bundle import Bundle
from atp_runtime.manifest import (
    FORMAT,
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

if TYPE_CHECKING:
    from atp_export.engines.library import Library

HIDDEN, HEADS, WIDTH, VOCABULARY, PATCH = 8, 2, 4, 11, 12


@pytest.fixture(scope="session", autouse=True)
def trace_once() -> None:
    """Nothing is traced here, so PyTorch need not be loaded for it."""


def segment_tensors(
    layer: int, *, scored: bool
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    past_key, past_value, key, value = cache_names(layer)
    inputs = [
        TensorSpec("hidden_states", "float16", (1, "tokens", HIDDEN)),
        TensorSpec("keep_indices", "int64", ("kept",)),
        TensorSpec("position_ids", "int64", (1, "kept")),
        TensorSpec("past_length", "int64", (1,)),
        TensorSpec(past_key, "float16", (1, "past", HEADS, WIDTH)),
        TensorSpec(past_value, "float16", (1, "past", HEADS, WIDTH)),
    ]
    outputs = [
        TensorSpec("hidden_states_out", "float16", (1, "kept", HIDDEN)),
        TensorSpec(key, "float16", (1, "kept", HEADS, WIDTH)),
        TensorSpec(value, "float16", (1, "kept", HEADS, WIDTH)),
    ]
    if scored:
        inputs += [
            TensorSpec("visual_weights", "float32", ("kept",)),
            TensorSpec("text_rows", "int64", ("rows",)),
            TensorSpec("text_weights", "float32", ("rows",)),
        ]
        outputs += [TensorSpec(f"scores.{it}", "float32", ("kept",)) for it in ("self", "cross")]
    return tuple(inputs), tuple(outputs)


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """A manifest with one layer per segment, all but the last of which prune."""

    def make(
        points: int = 1,
        longest: int = 64,
        visual: int = 4,
        text: int = 6,
        precision: str = "fp16",
        dialect: str = "portable",
    ) -> Manifest:
        typical = min(longest, visual + text)
        head = TensorSpec("hidden_states", "float16", (1, "tokens", HIDDEN))
        pixels = TensorSpec("pixel_values", "float32", ("images", 3, 4, 4))
        features = TensorSpec("image_features", "float16", ("images", 4, HIDDEN))
        stages = [_stage("vision", "vision", (pixels,), (features,))]
        for layer in range(points + 1):
            scored = layer < points
            inputs, outputs = segment_tensors(layer, scored=scored)
            pruning = PruningPoint(layer + 1, "atp", {}) if scored else None
            stage = _stage(f"segment_{layer}", "segment", inputs, outputs)
            stages.append(replace(stage, layers=(layer, layer + 1), pruning=pruning))
        stages.append(
            _stage("head", "head", (head,), (TensorSpec("logits", "float32", (1, VOCABULARY)),))
        )
        return Manifest(
            format=FORMAT,
            schema_version=SCHEMA_VERSION,
            precision=precision,
            dialect=dialect,
            opset=18,
            text=TextModel(points + 1, HIDDEN, HEADS, HEADS, WIDTH, 16, VOCABULARY, longest),
            vision=VisionModel((4, 4), (2, 2), visual, 0, 0, 3),
            embedding=Embedding("onnx/embed_tokens.npy", "float16"),
            axes={
                "tokens": AxisRange(1, typical, longest),
                "kept": AxisRange(1, typical, longest),
                "past": AxisRange(0, 0, longest),
                "rows": AxisRange(1, min(text, longest), longest),
                "images": AxisRange(1, 1, max(1, longest // visual)),
            },
            stages=tuple(stages),
            processor="processor",
            pruning_weights=None,
            provenance=Provenance("made by hand", "", "", {}),
            files={
                name: FileRecord(1000, "")
                for stage in stages
                for name in ("onnx/embed_tokens.npy", stage.graph, *stage.data)
            },
        )

    return make


def _stage(
    name: str, kind: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Stage:
    return Stage(name, kind, f"onnx/{name}.onnx", (f"onnx/{name}.data",), inputs, outputs)


@pytest.fixture(scope="session")
def small_bundle(
    make_manifest: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """vision, two segments and head, whose graphs exist; shared, so no test may change it."""
    root = tmp_path_factory.mktemp("small") / "bundle"
    (root / "onnx").mkdir(parents=True)
    manifest = make_manifest()
    for number, stage in enumerate(manifest.stages):
        _write_graph(root, stage, np.random.default_rng(number))
    np.save(root / "onnx" / "embed_tokens.npy", np.zeros((VOCABULARY, HIDDEN), np.float16))
    write_records(root, manifest)
    return root


@pytest.fixture
def own_bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture
def change_weights() -> Callable[[Path, str], Bundle]:
    """Gives a stage of a bundle other weights, as another export would."""

    def change(root: Path, stage: str) -> Bundle:
        file = root / "onnx" / f"{stage}.data"
        weights = np.frombuffer(file.read_bytes(), np.float16)
        file.write_bytes((weights * np.float16(2)).tobytes())
        write_records(root, Bundle(root, _read(root)).manifest)
        return Bundle.open(root)

    return change


@pytest.fixture(scope="session")
def rtx() -> Library:
    """TensorRT-RTX, building for Ampere without a GPU."""
    if find_spec("tensorrt_rtx") is None or find_spec("polygraphy") is None:
        pytest.skip("TensorRT-RTX or Polygraphy is not installed")
    from atp_export.engines.library import check_library

    return check_library()


@pytest.fixture(scope="session")
def built_bundle(
    rtx: Library, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The small bundle with all engines; shared, so no test may change it."""
    from atp_export.engines.builder import build_engines
    from atp_export.engines.options import EngineOptions
    from atp_export.progress import QuietReporter

    root = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(small_bundle, root)
    build_engines(Bundle.open(root), rtx, EngineOptions(), QuietReporter())
    return root


@pytest.fixture
def own_built(built_bundle: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return Path(shutil.copytree(built_bundle, tmp_path / "built"))


def write_records(root: Path, manifest: Manifest) -> None:
    files = {}
    for name in manifest.files:
        content = (root / name).read_bytes()
        files[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    text = dump_manifest(replace(manifest, files=files))
    (root / "manifest.json").write_text(text, encoding="utf-8")


def _read(root: Path) -> Manifest:
    from atp_runtime.manifest import read_manifest

    return read_manifest(root)


def _write_graph(root: Path, stage: Stage, generator: np.random.Generator) -> None:
    import onnx
    from onnx import helper, numpy_helper

    nodes, constants = {"vision": _vision, "segment": _segment, "head": _head}[stage.kind](stage)
    shapes = {"vision": (PATCH, HIDDEN), "segment": (HIDDEN, HIDDEN), "head": (HIDDEN, VOCABULARY)}
    weight = (generator.normal(size=shapes[stage.kind]) / 3).astype(np.float16)
    arrays = {**{name: np.array(value) for name, value in constants.items()}, "weight": weight}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(
        [helper.make_node(kind, ins, [out], **options) for kind, ins, out, options in nodes],
        stage.name,
        [_value(spec) for spec in stage.inputs],
        [_value(spec) for spec in stage.outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(
        model,
        root / stage.graph,
        save_as_external_data=True,
        location=Path(stage.data[0]).name,
        size_threshold=100,  # the weight; constants of shapes stay inside
    )


Node = tuple[str, list[str], str, dict[str, Any]]


def _vision(stage: Stage) -> tuple[list[Node], dict[str, Any]]:
    nodes: list[Node] = [
        ("Reshape", ["pixel_values", "patches"], "flat", {"allowzero": 0}),
        ("Cast", ["flat"], "half", {"to": 10}),
        ("MatMul", ["half", "weight"], "image_features", {}),
    ]
    return nodes, {"patches": [0, 4, PATCH]}


def _head(stage: Stage) -> tuple[list[Node], dict[str, Any]]:
    nodes: list[Node] = [
        ("Gather", ["hidden_states", "last"], "state", {"axis": 1}),
        ("MatMul", ["state", "weight"], "half", {}),
        ("Cast", ["half"], "logits", {"to": 1}),
    ]
    return nodes, {"last": -1}


def _segment(stage: Stage) -> tuple[list[Node], dict[str, Any]]:
    past_key, past_value, key, value = cache_names(stage.layers[0])
    nodes: list[Node] = [
        ("Gather", ["hidden_states", "keep_indices"], "kept", {"axis": 1}),
        ("MatMul", ["kept", "weight"], "mixed", {}),
        ("Cast", ["position_ids"], "positions", {"to": 10}),
        ("Unsqueeze", ["positions", "end"], "column", {}),
        ("Mul", ["column", "small"], "shift", {}),
        ("ReduceSum", [past_key, "one"], "past_keys", {"keepdims": 1}),
        ("ReduceSum", [past_value, "one"], "past_values", {"keepdims": 1}),
        ("Add", ["past_keys", "past_values"], "memory", {}),
        ("Reshape", ["memory", "flat"], "remembered", {}),
        ("Add", ["mixed", "shift"], "shifted", {}),
        ("Add", ["shifted", "remembered"], "hidden_states_out", {}),
        ("Reshape", ["hidden_states_out", "by_head"], key, {}),
        ("Reshape", ["kept", "by_head"], value, {}),
    ]
    if stage.pruning:
        nodes += [
            ("Cast", ["text_rows"], "rows", {"to": 1}),
            ("Mul", ["rows", "text_weights"], "weighted", {}),
            ("ReduceSum", ["weighted"], "asked", {"keepdims": 0}),
            ("Mul", ["visual_weights", "asked"], "scores.cross", {}),
            ("Add", ["visual_weights", "visual_weights"], "scores.self", {}),
        ]
    constants = {
        "end": [-1],
        "one": [1],
        "small": np.float16(0.01),
        "flat": [1, 1, HIDDEN],
        "by_head": [1, -1, HEADS, WIDTH],
    }
    return nodes, constants


def _value(spec: TensorSpec) -> Any:
    from onnx import helper

    kind = {"float16": 10, "float32": 1, "int64": 7}[spec.dtype]
    return helper.make_tensor_value_info(spec.name, kind, list(spec.shape))
