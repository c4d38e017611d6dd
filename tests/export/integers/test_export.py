"""Bundles of quantised checkpoints: their integers, their answers, what runtimes make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from tests.conftest import write_bundle
from tests.models.quantised.packers import TOOLS, Packed, Quantised
from transformers import LlavaForConditionalGeneration

from atp_export.footprint import predict_footprint
from atp_export.integers.stored import block_size
from atp_export.job import ExportOptions, prepare_job
from atp_export.parity.recording import BundleRun, keep_all
from atp_export.parity.samples import Prompt
from atp_export.pipeline import export_bundle
from atp_export.progress import QuietReporter
from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.reference import LlavaReference
from atp_models.reference_parts import ReferenceParts
from atp_models.tensor_names import canonical_parts
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import Manifest, Quantisation, read_manifest

Make = Callable[[str], Quantised]
Array = npt.NDArray[Any]
KINDS = {
    "asymmetric": "gptq by activation, asymmetric",
    "scaled": "modelopt int4",
    "int8": "modelopt int8, smooth",
}


@pytest.fixture(scope="module")
def bundle_of(quantised: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports what a tool quantised in FP32 and the portable dialect, pruned before layer 1."""
    made: dict[str, Path] = {}

    def make(tool: str) -> Path:
        if tool not in made:
            made[tool] = tmp_path_factory.mktemp("exported") / "bundle"
            options: dict[str, Any] = {"precision": "fp32", "dialect": "portable", "dense": False}
            write_bundle(quantised(tool).path, made[tool], prune_at=[1], **options)
        return made[tool]

    return make


def layers_of(bundle: Path) -> dict[str, tuple[Array, Array]]:
    """The stored integers and scales of a bundle, by their weights."""
    found = {}
    for stage in read_manifest(bundle).segments:
        graph = ir.load(bundle / stage.graph).graph
        for name, value in graph.initializers.items():
            weight, _, kind = name.rpartition(".")
            if kind in ("int4", "int8"):
                scale = graph.initializers[f"{weight}.scale"].const_value
                assert value.const_value is not None
                assert scale is not None
                found[weight] = value.const_value.numpy().astype(np.int64), scale.numpy()
    return found


@pytest.mark.parametrize(
    "tool",
    [
        tool if tool in KINDS.values() else pytest.param(tool, marks=pytest.mark.slow)
        for tool in TOOLS
    ],
)
def test_the_bundle_holds_the_checkpoints_own_integers_and_scales(
    tool: str, quantised: Make, bundle_of: Callable[[str], Path]
) -> None:
    made = quantised(tool)
    checkpoint, found = Checkpoint.open(made.path), layers_of(bundle_of(tool))

    assert found.keys() == {canonical_parts(name)[0].name for name in made.layers}
    for name, (values, scales) in found.items():
        stored = checkpoint.read_quantised(name)
        assert np.array_equal(values, stored.values.numpy())
        held = scales.reshape(-1, values.shape[1])
        rows = np.repeat(stored.scales.float().numpy(), len(held) // len(stored.scales), axis=0)
        assert np.array_equal(held, rows)


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        ("awq", Quantisation("int4", None, 32, 14, tool="awq")),
        ("gptq by activation, asymmetric", Quantisation("int4", None, 32, 14, tool="gptq")),
        ("modelopt int8, smooth", Quantisation("int8", "int8", None, 14, tool="modelopt")),
        pytest.param(
            "compressed-tensors per channel",
            Quantisation("int4", None, 64, 14, tool="compressed-tensors"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "modelopt int8 weights",
            Quantisation("int8", None, None, 14, tool="modelopt"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_manifest_says_what_was_kept(
    tool: str, expected: Quantisation, bundle_of: Callable[[str], Path]
) -> None:
    manifest = Bundle.open(bundle_of(tool), verify="full").manifest

    assert manifest.quantisation == expected
    opsets = {"int4": 21, "int8": 19}
    assert manifest.opset == opsets[expected.weights]
    for stage in manifest.stages:
        onnx.checker.check_model(str(bundle_of(tool) / stage.graph), full_check=True)


@pytest.mark.parametrize("tool", KINDS.values(), ids=KINDS)
def test_segments_compute_what_the_integers_stand_for(
    tool: str, quantised: Make, bundle_of: Callable[[str], Path]
) -> None:
    """ONNX's reference evaluator against NumPy in float64: one linear layer of each kind."""
    packed, bundle = quantised(tool).layers, bundle_of(tool)
    model = onnx.load(bundle / "onnx/segment_0.onnx")
    weight = "model.language_model.layers.0.mlp.gate_proj.weight"
    x = np.random.default_rng(0).normal(size=(1, 5, 64)).astype(np.float32)

    (found,) = run_layer(model, weight, x)

    expected = layer_of(packed["language_model.model.layers.0.mlp.gate_proj.weight"], x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def run_layer(model: onnx.ModelProto, weight: str, x: Array) -> list[Array]:
    """What a linear layer of a graph makes of an input."""
    core = ir.serde.deserialize_model(model)
    layer = [node for node in core.graph if str(node.name).startswith(f"{weight}/")]
    product = next(
        node
        for node in core.graph
        if node.op_type == "MatMul"
        and (source := node.inputs[1]) is not None
        and (up := source.producer()) is not None
        and up.name == f"{weight}/DequantizeLinear"
    )
    last = next((node for node in layer if node.op_type == "Add"), product)
    norm = read_by(product)
    part = ir.convenience.extract(core.graph, [norm], [last.outputs[0]])
    extracted = ir.Model(part, ir_version=core.ir_version)
    norm.type, norm.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(x.shape)
    last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    proto = ir.serde.serialize_model(extracted)
    found: list[Array] = ReferenceEvaluator(proto).run(None, {str(norm.name): x})
    return found


def read_by(product: ir.Node) -> ir.Value:
    """The value before everything that was put ahead of a product."""
    value = product.inputs[0]
    assert value is not None
    while (node := value.producer()) is not None and (
        node.op_type in AHEAD or "_proj.weight/" in str(node.name)
    ):
        value = node.inputs[0]
        assert value is not None
    return value


AHEAD = ("DequantizeLinear", "QuantizeLinear")


def layer_of(packed: Packed, x: Array) -> Array:
    """x W, the input rounded to INT8 first where the tool does that: float64."""
    wide = x.astype(np.float64)
    if packed.step is not None:
        wide = np.clip(np.rint(wide / packed.step), -128, 127) * packed.step
    product: Array = wide @ packed.stands_for.T
    return product


@pytest.mark.parametrize("tool", ["gptq by activation, asymmetric", "modelopt int4"])
def test_answers_are_those_of_transformers_with_the_same_weights(
    tool: str, quantised: Make, bundle_of: Callable[[str], Path]
) -> None:
    ids = np.arange(3, 40, dtype=np.int64)
    model = LlavaForConditionalGeneration.from_pretrained(quantised(tool).floats).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids).unsqueeze(0)).logits[0, -1].numpy()
    bundle = Bundle.open(bundle_of(tool))

    with BundleRun(bundle, len(ids)) as run:
        result, _ = run.prefill(run.see(Prompt("text", ids, None, ())), keep_all)

    # ONNX Runtime's kernel rounds the inputs of 4-bit weights to 8 bits.
    error = np.abs(result.logits - expected).max() / np.abs(expected).max()
    assert error < 0.02
    assert result.logits.argmax() == expected.argmax()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("tool", KINDS.values(), ids=KINDS)
def test_parity_passes_in_both_dialects(
    tool: str, precision: str, quantised: Make, tmp_path: Path
) -> None:
    options = ExportOptions(precision=precision, prune_at=[1])
    for mode in ("full", "sampled"):
        job = prepare_job(quantised(tool).path, tmp_path / mode, options)
        result = export_bundle(job, parity=mode, reporter=QuietReporter())
        assert result.parity is not None
        assert result.parity.passed


@pytest.mark.parametrize("tool", ["modelopt int8, smooth", "awq"])
def test_the_references_agree(tool: str, quantised: Make) -> None:
    checkpoint = Checkpoint.open(quantised(tool).path)
    spec = read_architecture(checkpoint)
    whole, parts = LlavaReference.of_quantised(checkpoint, spec), ReferenceParts(checkpoint, spec)
    x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        found: Any = parts.layer(1)
        expected: Any = whole.model.model.language_model.layers[1]
        assert torch.equal(found.mlp(x), expected.mlp(x))


def test_layers_that_read_the_same_value_share_its_order(
    bundle_of: Callable[[str], Path],
) -> None:
    graph = ir.load(bundle_of("gptq by activation, asymmetric") / "onnx/segment_0.onnx").graph
    kinds = [node.op_type for node in graph if "_proj.weight/" in str(node.name)]
    # q, k and v; o; gate and up; down.
    assert (kinds.count("Gather"), kinds.count("ReduceMean")) == (4, 4)
    assert (kinds.count("MatMul"), kinds.count("Add"), kinds.count("Mul")) == (7, 7, 0)


def test_symmetric_layers_get_nothing_but_integers(bundle_of: Callable[[str], Path]) -> None:
    graph = ir.load(bundle_of("gptq") / "onnx/segment_0.onnx").graph
    kinds = [node.op_type for node in graph if "_proj.weight/" in str(node.name)]
    assert kinds == ["DequantizeLinear"] * 7


def test_groups_are_written_as_blocks_that_runtimes_have_kernels_for(quantised: Make) -> None:
    assert block_size(Checkpoint.open(quantised("awq").path)) == 32
    # All of 64 and of 128 inputs.
    assert block_size(Checkpoint.open(quantised("compressed-tensors per channel").path)) == 64


@pytest.mark.parametrize("tool", KINDS.values(), ids=KINDS)
def test_the_plan_knows_how_many_bytes_integers_take(
    tool: str, quantised: Make, bundle_of: Callable[[str], Path]
) -> None:
    options = ExportOptions(precision="fp32", dialect="portable", prune_at=[1])
    plan = prepare_job(quantised(tool).path, Path("unused"), options).plan
    manifest = read_manifest(bundle_of(tool))

    for predicted in predict_footprint(plan).stages:
        held = manifest.files[manifest.stage(predicted.name).data[0]].bytes
        # Orders and multipliers are not counted, and each tensor begins a page.
        assert 0.9 * predicted.weight_bytes < held < predicted.weight_bytes + 60 * 4096


def test_the_weights_file_holds_half_a_byte_for_each(bundle_of: Callable[[str], Path]) -> None:
    manifest: Manifest = read_manifest(bundle_of("gptq"))
    weights = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    held = sum(manifest.files[stage.data[0]].bytes for stage in manifest.segments)
    # Scales and norms, each from a page on.
    assert held < 2 * (weights // 2 + 16 * 4096)
