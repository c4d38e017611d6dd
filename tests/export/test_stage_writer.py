"""What lies in an exported bundle, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from atp_export.job import ExportJob
from atp_export.progress import QuietReporter, Reporter
from atp_export.stage_writer import StageWriter
from atp_export.workspace import Workspace
from atp_models.atp import AtpModules
from atp_models.checkpoint import Checkpoint
from atp_models.pruning_config import PruningConfig
from atp_models.random_configs import tiny_config
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Manifest, read_manifest

EMBEDDING = "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module", params=["fp32", "fp16 tied, both dialects"])
def exported(request: pytest.FixtureRequest, export_bundle: Any, tiny: Any) -> Any:
    if request.param == "fp32":
        return tiny
    config = tiny_config(kv_heads=2, tied=True)
    return export_bundle(config, precision="fp16", dialect="both", prune_at=(2,))


@pytest.fixture
def manifest(exported: Any) -> Manifest:
    return read_manifest(exported.bundle)


def graphs(manifest: Manifest) -> list[str]:
    """The files of all graphs, of every stage in every dialect."""
    return [
        file for stage in manifest.stages for file in (stage.graph, *stage.other_graphs.values())
    ]


def external(bundle: Path, graph: str) -> dict[str, tuple[np.ndarray, str, int]]:
    """The external tensors of a graph, read by hand: values, file and offset."""
    tensors = {}
    for tensor in onnx.load(bundle / graph, load_external_data=False).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        values = np.fromfile(
            (bundle / graph).parent / place["location"],
            dtype,
            count=int(np.prod(tensor.dims)),
            offset=int(place["offset"]),
        ).reshape(tensor.dims)
        assert values.nbytes == int(place["length"])
        tensors[tensor.name] = values, place["location"], int(place["offset"])
    return tensors


def test_every_weight_of_every_graph_is_the_checkpoints(exported: Any, manifest: Manifest) -> None:
    checkpoint = Checkpoint.open(exported.checkpoint)
    dtype = np.float16 if manifest.precision == "fp16" else np.float32
    heads = {"norm.weight": "model.language_model.norm.weight"}
    if "lm_head.weight" not in checkpoint.tensors:
        heads["lm_head.weight"] = EMBEDDING
    for file in graphs(manifest):
        tensors = external(exported.bundle, file)
        assert tensors
        for name, (values, _, _) in tensors.items():
            if name == "rope.inv_freq":
                np.testing.assert_allclose(values, 10000.0 ** (-np.arange(8) / 8), rtol=1e-6)
                continue
            stored = checkpoint.read(heads.get(name, name)).numpy().astype(dtype)
            # A square matrix may be stored either way round; the numbers tell which.
            turned = stored.ndim == 2 and not np.array_equal(values, stored)
            np.testing.assert_array_equal(values, stored.T if turned else stored, err_msg=name)


def test_every_weight_begins_on_a_page(exported: Any, manifest: Manifest) -> None:
    for graph in graphs(manifest):
        for _, file, offset in external(exported.bundle, graph).values():
            assert offset % 4096 == 0 or file == "embed_tokens.npy"


def test_the_embedding_is_a_table_that_numpy_maps(exported: Any, manifest: Manifest) -> None:
    table = np.load(exported.bundle / manifest.embedding.file, mmap_mode="r")
    stored = Checkpoint.open(exported.checkpoint).read(EMBEDDING).numpy()
    assert table.dtype.name == manifest.embedding.dtype
    np.testing.assert_array_equal(table, stored.astype(table.dtype))


def test_a_tied_head_reads_the_embeddings_own_file(exported: Any, manifest: Manifest) -> None:
    _, file, offset = external(exported.bundle, "onnx/head.onnx")["lm_head.weight"]
    tied = "lm_head.weight" not in Checkpoint.open(exported.checkpoint).tensors
    if tied:
        table = np.load(exported.bundle / manifest.embedding.file, mmap_mode="r")
        assert (file, offset) == ("embed_tokens.npy", table.offset)
        assert manifest.embedding.file in manifest.stage("head").data
    else:
        assert file == "head.data"
        assert manifest.stage("head").data == ("onnx/head.data",)


def test_graphs_carry_no_weights_themselves(exported: Any, manifest: Manifest) -> None:
    for file in graphs(manifest):
        assert (exported.bundle / file).stat().st_size < 100_000


def test_dialects_have_graphs_of_their_own_and_share_the_weights(
    exported: Any, manifest: Manifest
) -> None:
    assert manifest.dialects in (("portable",), ("portable", "native"))
    for stage in manifest.stages:
        assert stage.other_graphs.keys() == manifest.other_dialects.keys()
        for dialect, file in stage.other_graphs.items():
            model = onnx.load(exported.bundle / file, load_external_data=False)
            assert model.opset_import[0].version == manifest.other_dialects[dialect]
            places = [
                {name: place[1:] for name, place in external(exported.bundle, graph).items()}
                for graph in (stage.graph, file)
            ]
            assert places[0] == places[1]


def test_graphs_pass_the_checker_with_shape_inference(exported: Any, manifest: Manifest) -> None:
    for file in graphs(manifest):
        onnx.checker.check_model(str(exported.bundle / file), full_check=True)


def test_pruning_modules_are_those_of_the_job(exported: Any, manifest: Manifest) -> None:
    layers = tuple(stage.layers[1] for stage in manifest.segments[:-1])
    expected = AtpModules(PruningConfig(layers=layers)).initialise().state_dict()
    found = load_file(exported.bundle / str(manifest.pruning_weights))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, expected[name].numpy())
    for stage in manifest.segments[:-1]:
        assert stage.pruning is not None
        assert f"{stage.pruning.weights}shared.weight" in found


class Noting(QuietReporter):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def write(job: ExportJob, reporter: Reporter) -> tuple[StageWriter, Workspace]:
    workspace = Workspace(job.bundle, job.key())
    with workspace.open():
        writer = StageWriter(job, workspace, reporter)
        writer.write_all()
    return writer, workspace


def test_steps_already_there_are_kept_and_said_so(
    make_job: Callable[..., ExportJob], stumble_at: Callable[[str], Reporter]
) -> None:
    job = make_job(prune_at=[2])
    with pytest.raises(KeyboardInterrupt):
        write(job, stumble_at("segment_0"))
    root = job.bundle.with_name("bundle.partial")
    before = {path: path.stat().st_mtime_ns for path in root.glob("onnx/*.data")}
    assert {path.name for path in before} == {"vision.data"}
    again = Noting()
    writer, workspace = write(job, again)
    assert again.notes == [
        f"{name}: already there, kept" for name in ("processor", "embedding", "vision")
    ]
    assert list(writer.seconds) == ["segment_0", "segment_1", "head"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(workspace.steps) == [
        "processor",
        "embedding",
        "vision",
        "segment_0",
        "segment_1",
        "head",
    ]


def test_a_value_that_the_precision_cannot_hold_leaves_its_step_unfinished(
    make_job: Callable[..., ExportJob], own_checkpoint: Path
) -> None:
    name = "language_model.model.embed_tokens.weight"
    file = own_checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors[name][3, 3] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    job = make_job(own_checkpoint, precision="fp16")
    with pytest.raises(CheckFailedError, match="embed_tokens"):
        write(job, QuietReporter())
    with Workspace(job.bundle, job.key()).open() as workspace:
        assert workspace.resumed == ("processor",)
