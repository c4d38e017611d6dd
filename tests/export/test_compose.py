"""What every composed graph must be like, whatever it computes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch

from atp_export.compose import StageComposer
from atp_export.plan import HeadPlan
from atp_export.signatures import head_signature, segment_signature, vision_signature
from atp_export.stage_graph import StageGraph
from atp_models.architecture import ModelSpec, read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.manifest import TensorSpec
from atp_runtime.tensor_names import SCORES

Composers = Callable[[str, str], StageComposer]

# Their results' shapes depend on values, which TensorRT and preallocated buffers cannot have.
DATA_DEPENDENT = {"NonZero", "Compress", "Unique", "If", "Loop", "Scan", "NonMaxSuppression"}
# TensorRT 10.3 parses these (its parser's operators.md at release/10.3).
PORTABLE = {
    "Add", "Cast", "Concat", "Conv", "Cos", "Div", "Erf", "Expand", "Gather", "Gemm",
    "GreaterOrEqual", "LayerNormalization", "Less", "MatMul", "Mul", "Pow", "Range", "Reciprocal",
    "ReduceMean", "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt",
    "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
FUSED = {"Attention", "RotaryEmbedding", "RMSNormalization"}


@pytest.fixture(scope="module", params=["portable-fp32", "native-fp16"])
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    dialect, _, precision = request.param.partition("-")
    return dialect, precision


@pytest.fixture(scope="module")
def stages(composer: Composers, kind: tuple[str, str], spec: ModelSpec) -> dict[str, StageGraph]:
    made = composer(*kind)
    return {
        "vision": made.vision(),
        "scored": made.segment("scored", 0, 2, scores=SCORES),
        "plain": made.segment("plain", 2, 3),
        "merging": made.segment("merging", 3, 4, merging=True),
        "head": made.head(HeadPlan("head", 0, spec.text.vocabulary)),
    }


def operators(graph: StageGraph) -> Counter[str]:
    return Counter(node.op_type for node in graph.model.graph)


def test_no_operator_depends_on_data_or_branches(stages: dict[str, StageGraph]) -> None:
    for graph in stages.values():
        assert not DATA_DEPENDENT & operators(graph).keys()


def test_portable_graphs_have_only_operators_of_tensorrt_10_3(
    kind: tuple[str, str], stages: dict[str, StageGraph]
) -> None:
    found = set().union(*(operators(graph) for graph in stages.values()))
    if kind[0] == "portable":
        assert found <= PORTABLE
    else:
        assert found >= FUSED


def test_graphs_have_the_standard_operator_set_alone_and_no_functions(
    kind: tuple[str, str], stages: dict[str, StageGraph]
) -> None:
    for graph in stages.values():
        assert graph.model.opset_imports == {"": {"portable": 18, "native": 24}[kind[0]]}
        assert not graph.model.functions
        assert {node.domain for node in graph.model.graph} == {""}


def test_the_onnx_checker_and_its_shape_inference_accept_every_graph(
    stages: dict[str, StageGraph],
) -> None:
    for graph in stages.values():
        onnx.checker.check_model(ir.serde.serialize_model(graph.model), full_check=True)


def test_inputs_and_outputs_are_those_of_the_contract(
    spec: ModelSpec, kind: tuple[str, str], stages: dict[str, StageGraph]
) -> None:
    dtype = {"fp32": "float32", "fp16": "float16"}[kind[1]]
    contract = {
        "vision": vision_signature(spec, dtype),
        "scored": segment_signature(spec, dtype, first=0, last=2, scores=SCORES),
        "plain": segment_signature(spec, dtype, first=2, last=3),
        "merging": segment_signature(spec, dtype, first=3, last=4, merging=True),
        "head": head_signature(spec, dtype, spec.text.vocabulary),
    }
    for name, graph in stages.items():
        inside = graph.model.graph
        weights = len(graph.weights)
        assert graph.signature == contract[name]
        assert tuple(map(declared, inside.inputs[: len(inside.inputs) - weights])) == (
            contract[name].inputs
        )
        assert tuple(map(declared, inside.outputs)) == contract[name].outputs
        assert [value.name for value in inside.inputs[-weights:]] == [
            weight.name for weight in graph.weights
        ]


def declared(value: ir.Value) -> TensorSpec:
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(str(value.name), value.dtype.numpy().name, shape)


def test_no_output_has_a_square_of_tokens(stages: dict[str, StageGraph]) -> None:
    for graph in stages.values():
        for output in graph.signature.outputs:
            dynamic = [size for size in output.shape if isinstance(size, str)]
            assert len(dynamic) <= 1, output.name


def test_layers_have_no_shape_arithmetic(stages: dict[str, StageGraph]) -> None:
    for name in ("scored", "plain"):
        of_layers = [n for n in stages[name].model.graph if str(n.name).startswith("layers.")]
        assert of_layers
        assert not [n.name for n in of_layers if n.op_type in ("Shape", "Gather", "Expand")]


def test_a_segment_grows_by_whole_layers_only(composer: Composers) -> None:
    made = composer("portable", "fp32")
    sizes = [len(made.segment("s", 0, last).model.graph) for last in (1, 2, 3, 4)]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == sizes[3] - sizes[2]


def test_nodes_and_values_are_named_after_the_modules_they_come_from(
    stages: dict[str, StageGraph],
) -> None:
    names = {str(node.name) for graph in stages.values() for node in graph.model.graph}
    assert "layers.1.self_attn.q_proj/MatMul" in names
    assert "layers.3.mlp.down_proj/MatMul" in names
    assert "vision_tower.encoder.layers.0.self_attn.k_proj/MatMul" in names
    assert "multi_modal_projector.linear_1/MatMul" in names
    for graph in stages.values():
        own = {
            str(value.name)
            for node in graph.model.graph
            for value in node.outputs
            if not value.is_graph_output()
        }
        assert all(re.fullmatch(r"[\w.]*/?[A-Z]\w*_output_\d+", name) for name in own)


def test_names_are_unique_in_a_graph(stages: dict[str, StageGraph]) -> None:
    for graph in stages.values():
        inside = graph.model.graph
        nodes = [node.name for node in inside]
        values = [value.name for node in inside for value in node.outputs]
        values += [*inside.initializers, *(value.name for value in inside.inputs)]
        assert len(set(nodes)) == len(nodes)
        assert len(set(values)) == len(values)


def test_only_small_constants_are_inside_a_graph(stages: dict[str, StageGraph]) -> None:
    for graph in stages.values():
        for value in graph.model.graph.initializers.values():
            assert value.const_value is not None
            assert value.const_value.nbytes <= 8 * 64, value.name


def test_every_weight_is_a_tensor_of_the_checkpoint_in_its_shape(
    spec: ModelSpec, stages: dict[str, StageGraph]
) -> None:
    shapes = spec.tensor_shapes()
    weights = [weight for graph in stages.values() for weight in graph.weights]
    assert len({weight.source for weight in weights}) == len(weights) - 2  # rope, per segment
    for weight in weights:
        if weight.source == "rope.inv_freq":
            continue
        stored = shapes[weight.source]
        assert weight.shape == (stored[::-1] if weight.transposed else stored)


def test_all_tensors_of_the_decoder_are_used(composer: Composers, spec: ModelSpec) -> None:
    made = composer("portable", "fp32")
    graphs = (
        made.segment("all", 0, spec.text.layers, scores=SCORES),
        made.head(HeadPlan("head", 0, spec.text.vocabulary)),
    )
    used = {weight.source for graph in graphs for weight in graph.weights}
    decoder = {
        name
        for name in spec.tensor_shapes()
        if name.startswith(("model.language_model", "lm_head")) and "embed_tokens" not in name
    }
    assert used == decoder | {"rope.inv_freq"}


def test_matrices_are_stored_as_matmul_takes_them_and_the_lm_head_as_the_embedding_is(
    stages: dict[str, StageGraph],
) -> None:
    by_name = {w.name: w for graph in stages.values() for w in graph.weights}
    assert by_name["model.language_model.layers.0.mlp.up_proj.weight"].transposed
    assert not by_name["lm_head.weight"].transposed
    assert "Transpose" not in operators(stages["head"])


def test_the_precision_is_that_of_weights_and_caches_but_not_of_positions_and_scores(
    kind: tuple[str, str], stages: dict[str, StageGraph]
) -> None:
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[kind[1]]
    for graph in stages.values():
        for weight in graph.weights:
            expected = torch.float32 if weight.source == "rope.inv_freq" else dtype
            assert weight.dtype == expected


def test_a_tied_head_reads_the_embedding(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "tied", tiny_config(tied=True))
    spec = read_architecture(Checkpoint.open(tmp_path / "tied"))
    head = StageComposer(spec, dialect="portable", dtype=torch.float32).head(
        HeadPlan("head", 0, spec.text.vocabulary)
    )
    sources = {weight.name: weight.source for weight in head.weights}
    assert sources["lm_head.weight"] == "model.language_model.embed_tokens.weight"


def test_composing_again_gives_the_same_bytes(composer: Composers) -> None:
    made = composer("portable", "fp32")
    first, second = (
        ir.serde.serialize_model(made.segment("s", 0, 2, scores=SCORES).model).SerializeToString()
        for _ in range(2)
    )
    assert first == second
