"""Bundles that spare visual tokens work, against the simulation in PyTorch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tests.export.command_line import Run
from tests.export.exporting import parity
from tests.export.structures import ALL, exported, misses

from atp_export.check.lint import lint
from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import stage_profiles
from atp_export.engines.samples import moments, sample_inputs
from atp_export.job import ExportJob
from atp_export.parity import run_parity
from atp_export.parity.recording import BundleRun, keep_all
from atp_export.parity.samples import image_prompt
from atp_export.structured_segment import head_order, weight_parts
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.image_tokens import Places
from atp_runtime.manifest import Stage
from atp_runtime.selection import Selectors
from atp_runtime.statistics import run_flops
from atp_runtime.structure_rows import Blocks, StructureRows
from atp_runtime.tensor_names import cache_names
from atp_runtime.workspace import Scorer


@pytest.fixture(scope="module")
def combined(tmp_path_factory: pytest.TempPathFactory) -> ExportJob:
    """Everything at once: ATP before layer 2, visual tokens gone from layer 3 on."""
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_random_checkpoint(checkpoint, tiny_config())
    config = {"layers": [2], "structure": ALL}
    bundle = tmp_path_factory.mktemp("bundle") / "bundle"
    return exported(checkpoint, bundle, config)


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_a_bundle_computes_what_the_simulation_does(combined: ExportJob, mode: str) -> None:
    report = parity(combined, mode)

    assert misses(report) == []
    assert report.passed


def test_logits_are_those_of_the_simulation_to_1e_4(combined: ExportJob) -> None:
    report = parity(combined, "full")

    found = [m for check in report.checks for m in check.measures if m.tensor == "logits"]
    assert len(found) > 4
    assert max(measure.max_abs_error or 0 for measure in found) <= 1e-4


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> ExportJob:
    """The same weights as `combined`, all work done and hidden, and visual tokens in all layers."""
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_random_checkpoint(checkpoint, tiny_config())
    structure = {**ALL, "cut_layer": 3, "mode": "masked"}
    return exported(checkpoint, tmp_path_factory.mktemp("bundle") / "b", {"structure": structure})


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_a_masked_bundle_computes_what_the_simulation_does(masked: ExportJob, mode: str) -> None:
    assert len(masked.plan.segments) == 1
    assert misses(parity(masked, mode)) == []


def test_fast_and_masked_agree_before_the_cut(combined: ExportJob, masked: ExportJob) -> None:
    """Two graphs made in two ways; behind the cut the masked one goes on with visual tokens."""
    prompt = image_prompt(combined.plan.spec, 2, 2048)
    found = []
    for job in (combined, masked):
        with BundleRun(Bundle.open(job.bundle), prompt.tokens) as run:
            _, outputs = run.prefill(run.see(prompt), keep_all)
            found.append({name: outputs[name] for name in outputs if "present" in name})

    fast, hidden = found
    for layer in range(3):
        for kind in ("key", "value"):
            name = f"present.{layer}.{kind}"
            np.testing.assert_allclose(fast[name], hidden[name], atol=1e-4)


def test_visual_tokens_and_their_keys_are_gone_from_the_cut_on(combined: ExportJob) -> None:
    bundle = Bundle.open(combined.bundle)
    prompt = image_prompt(combined.plan.spec, 1, 2048)

    with BundleRun(bundle, prompt.tokens) as run:
        rules = Selectors.open(bundle.root, bundle.manifest)
        result, outputs = run.prefill(run.see(prompt), rules)

    text = len(prompt.ids) - bundle.manifest.vision.tokens
    assert result.points[-1].before_layer == 3
    assert outputs["present.3.key"].shape[1] == text
    assert [call.tokens for call in result.calls if call.stage == "segment_2"] == [text]


def test_every_weight_is_stored_once(combined: ExportJob) -> None:
    bundle, shapes = Bundle.open(combined.bundle), combined.plan.spec.tensor_shapes()
    whole = sum(
        int(np.prod(shape)) for name, shape in shapes.items() if "language_model.layers" in name
    )

    stored = 0
    for stage in bundle.manifest.segments:
        model = onnx.load(bundle.path(stage.graph), load_external_data=False)
        stored += sum(
            int(np.prod(it.dims)) for it in model.graph.initializer if "layers." in it.name
        )

    assert stored == whole


def test_no_activation_is_a_matrix_of_all_tokens_by_all_tokens_per_head(
    combined: ExportJob,
) -> None:
    """Asked of every value that appears in a prompt of 36 images of 16 tokens."""
    bundle = Bundle.open(combined.bundle)
    vision = bundle.manifest.vision
    ids = np.full(640, vision.image_token_id)
    ids[::10] = 5
    chunk = Chunk.from_ids(ids, vision.image_token_id, [Places.whole(vision)] * 36)
    stages = [stage for stage in bundle.manifest.segments if stage.tells_visual]
    assert len(stages) == 2
    for stage in stages:
        shapes = shapes_inside(bundle, stage, chunk)
        assert len(shapes) > 100
        most = bundle.manifest.text.heads * 576
        assert [shape for shape in shapes if np.prod(shape) >= most * 576] == []
    whole = shapes_inside(bundle, bundle.manifest.segments[-1], chunk)
    assert any(np.prod(shape) >= most * 576 for shape in whole), "none would be seen"


def shapes_inside(bundle: Bundle, stage: Stage, chunk: Chunk) -> list[tuple[int, ...]]:
    """Of all that a segment computes for a chunk."""
    model = onnx.load(bundle.path(stage.graph))
    known = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    text, tokens = bundle.manifest.text, len(chunk)
    rows = StructureRows.of(chunk.visual(), tokens, Blocks.of(3, bundle.manifest.vision.grid))
    scorer = Scorer.for_sequence(chunk.visual(), tokens)
    cache = np.zeros((1, 0, text.kv_heads, text.head_dim), np.float32)
    feeds = {
        "hidden_states": np.ones((1, tokens, text.hidden), np.float32),
        "keep_indices": np.arange(tokens),
        "position_ids": np.arange(tokens)[np.newaxis],
        "past_length": np.zeros(1, np.int64),
        **{name: cache for layer in range(*stage.layers) for name in cache_names(layer)[:2]},
        **vars(rows),
        **vars(scorer),
    }
    session = onnxruntime.InferenceSession(model.SerializeToString())
    wanted = {node.name for node in session.get_inputs()}
    found = session.run(None, {name: value for name, value in feeds.items() if name in wanted})
    return [value.shape for value in found]


def test_the_counter_has_the_products_of_the_graph(combined: ExportJob) -> None:
    bundle = Bundle.open(combined.bundle)
    manifest = bundle.manifest
    prompt = image_prompt(combined.plan.spec, 1, 2048)
    with BundleRun(bundle, prompt.tokens) as run:
        calls = run.prefill(run.see(prompt), keep_all)[0].calls
    for stage in [stage for stage in manifest.segments if stage.tells_visual]:
        (call,) = [call for call in calls if call.stage == stage.name]
        sizes = {"tokens": call.tokens, "kept": call.tokens, "past": 0, "rows": 16}
        sizes |= {"others": call.tokens - call.visual, "visual": call.visual, "blocks": 2}

        found = products(bundle.path(stage.graph), sizes)

        assert call.visual == manifest.vision.tokens
        assert found == run_flops(manifest, stage, call.tokens, call.past, call.visual)


def products(graph: Path, sizes: dict[str, int]) -> int:
    """Operations of the matrix products, but for the scorer's."""
    model = onnx.load(graph, load_external_data=False)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    shapes |= {it.name: list(it.dims) for it in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type == "MatMul" and not node.name.startswith("scorer"):
            inner = shapes[node.input[0]][-1]
            total += 2 * inner * int(np.prod(shapes[node.output[0]]))
    return total


def test_portable_graphs_have_only_operators_that_tensorrt_10_3_takes(
    combined: ExportJob,
) -> None:
    for stage in Bundle.open(combined.bundle).manifest.segments:
        model = onnx.load(combined.bundle / stage.graph, load_external_data=False)
        assert lint(model) == ()


def test_kept_heads_come_first_and_each_weight_has_its_own_rows(combined: ExportJob) -> None:
    text = combined.plan.spec.text
    order, ranks, kv_ranks, kept = head_order((1, 2), text)
    assert (order, kept) == ([1, 2, 0, 3], [1, 2])
    assert [order[rank] for rank in ranks] == [0, 1, 2, 3]
    assert kv_ranks == ranks

    parts = weight_parts((1, 2), 2, text)

    assert parts["self_attn.q_proj.weight"].spans == ((16, 32), (32, 48))
    assert parts["self_attn.o_proj_language.weight"].spans == ((0, 16), (48, 64))
    assert parts["self_attn.o_proj_language.weight"].axis == 1
    assert parts["mlp.down_proj.weight"].spans == ((0, 64),)
    assert parts["mlp.gate_proj_language.weight"].spans == ((64, 128),)


def test_head_orders_are_stored_as_numbers_and_not_as_weights(combined: ExportJob) -> None:
    stage = Bundle.open(combined.bundle).manifest.segments[0]
    model = onnx.load(combined.bundle / stage.graph, load_external_data=False)
    orders = [
        numpy_helper.to_array(it).tolist()
        for it in model.graph.initializer
        if it.data_type == onnx.TensorProto.INT64 and not it.external_data
    ]
    assert [1, 2, 0, 3] in orders


def test_a_bundle_is_verified_against_its_checkpoint(combined: ExportJob, run: Run) -> None:
    words = ("verify", combined.bundle, "--checkpoint", combined.checkpoint.path)

    shown = run(*words)

    assert shown.code == 0, shown.err
    assert "PyTorch's simulation" in shown.out


def test_a_damaged_value_is_found(combined: ExportJob, tmp_path: Path) -> None:
    """Parity is not blind here: a head that is told to be another is seen."""
    bundle = tmp_path / "bundle"
    shutil.copytree(combined.bundle, bundle)
    stage = Bundle.open(bundle).manifest.segments[0]
    model = onnx.load(bundle / stage.graph, load_external_data=False)
    (order,) = [
        it
        for it in model.graph.initializer
        if it.data_type == onnx.TensorProto.INT64
        and numpy_helper.to_array(it).tolist() == [1, 2, 0, 3]
    ]
    order.CopyFrom(numpy_helper.from_array(np.array([2, 1, 0, 3]), order.name))
    onnx.save(model, bundle / stage.graph)

    report = run_parity(
        combined.checkpoint,
        combined.plan.spec,
        combined.plan,
        bundle,
        mode="full",
        report=lambda _: None,
    )

    assert not report.passed


def test_engines_are_tried_with_inputs_that_the_graphs_take(combined: ExportJob) -> None:
    bundle = Bundle.open(combined.bundle)
    for stage in bundle.manifest.segments:
        session = onnxruntime.InferenceSession(str(bundle.path(stage.graph)))
        profiles = stage_profiles(bundle.manifest, stage, EngineOptions())
        for moment in moments(profiles):
            profile = profiles[-1] if moment.name == "decode" else profiles[0]
            assert profile.admits(moment.lengths)
            outputs = session.run(None, sample_inputs(stage, moment.lengths))
            assert all(np.isfinite(output).all() for output in outputs)
