"""From pieces to the graph of a stage: names, inputs and outputs of the bundle's contract.

A layer is traced once and called once per layer of a segment; inlining turns the calls into
one flat graph. So the time to trace does not grow with the model's depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from atp_export.graphs.dialects import DIALECTS
from atp_export.graphs.pieces import AttentionScorer, DecoderLayer, Head, SegmentEntry, Vision
from atp_export.plan import DTYPE_NAMES
from atp_export.trace import DOMAIN, SCOPE, Argument, Piece, trace
from atp_models.architecture import ModelSpec
from atp_runtime.manifest import TensorSpec, cache_names

FLOAT, INDEX = torch.float32, torch.int64
IR_VERSION = 10
_CALL = "call"  # metadata of a node: the part of the stage it belongs to
IR_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.int64: ir.DataType.INT64,
}


@dataclass(frozen=True)
class StageWeight:
    """A weight of a stage's graph.

    Attributes:
        name: Its initialiser's name in the graph.
        source: The checkpoint's tensor, by canonical name.
        shape: As the graph uses it.
        dtype: As the graph uses it.
        transposed: The graph wants the checkpoint's [out, in] as [in, out].
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool

    @property
    def nbytes(self) -> int:
        """Bytes in the data file, without alignment."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class StageGraph:
    """A stage's graph with its weights still to be filled in.

    Attributes:
        model: Weights are graph inputs after the contract's own inputs.
        inputs: The contract's inputs.
        outputs: The contract's outputs.
        weights: In the order of the remaining graph inputs.
    """

    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[StageWeight, ...]

    @property
    def name(self) -> str:
        """The stage's name."""
        return str(self.model.graph.name)


class StageComposer:
    """Makes the stages of one model in one dialect and precision; traces each piece once."""

    def __init__(self, spec: ModelSpec, *, dialect: str, dtype: torch.dtype) -> None:
        self.spec = spec
        self.text = spec.text
        self.dialect = DIALECTS[dialect]
        self.dtype = dtype

    @cached_property
    def _entry(self) -> Piece:
        text = self.text
        arguments = [
            Argument("hidden_states", (1, "tokens", text.hidden), self.dtype),
            Argument("keep_indices", ("kept",), INDEX),
            Argument("position_ids", (1, "kept"), INDEX),
            Argument("past_key", self._cache_shape("past"), self.dtype),
        ]
        outputs = ["hidden_states_kept", "cos", "sin", "mask"]
        return self._trace("SegmentEntry", SegmentEntry, arguments, outputs)

    @cached_property
    def _layer(self) -> Piece:
        half = self.text.head_dim // 2
        arguments = [
            Argument("hidden_states", (1, "kept", self.text.hidden), self.dtype),
            Argument("cos", (1, "kept", half), FLOAT),
            Argument("sin", (1, "kept", half), FLOAT),
            Argument("mask", ("kept", "key"), self.dialect.mask_dtype),
            Argument("past_key", self._cache_shape("past"), self.dtype),
            Argument("past_value", self._cache_shape("past"), self.dtype),
        ]
        outputs = ["hidden_states_out", "key", "value", "query", "keys"]
        return self._trace("DecoderLayer", DecoderLayer, arguments, outputs)

    @cached_property
    def _scorer(self) -> Piece:
        query_shape = (1, "kept", self.text.heads, self.text.head_dim)
        arguments = [
            Argument("query", query_shape, self.dtype),
            Argument("key", self._cache_shape("kept"), self.dtype),
            Argument("keys", self._cache_shape("key"), self.dtype),
            Argument("mask", ("kept", "key"), self.dialect.mask_dtype),
            Argument("visual_weights", ("kept",), FLOAT),
            Argument("text_rows", ("rows",), INDEX),
            Argument("text_weights", ("rows",), FLOAT),
        ]
        build = lambda: AttentionScorer(self.dialect)  # noqa: E731
        outputs = ["self", "cross"]
        return trace(
            "AttentionScorer", build, arguments, outputs, dtype=FLOAT, opset=self.dialect.opset
        )

    def _trace(
        self, name: str, module: type, arguments: list[Argument], outputs: list[str]
    ) -> Piece:
        build = lambda: module(self.text, self.dialect)  # noqa: E731
        return trace(name, build, arguments, outputs, dtype=self.dtype, opset=self.dialect.opset)

    def _cache_shape(self, axis: str) -> tuple[int | str, ...]:
        return (1, axis, self.text.kv_heads, self.text.head_dim)

    def vision(self) -> StageGraph:
        """Vision tower, feature selection and projector."""
        vision, hidden = self.spec.vision, self.text.hidden
        pixels = Argument("pixel_values", ("images", 3, *vision.image_size), FLOAT)
        piece = trace(
            "Vision",
            lambda: Vision(self.spec, self.dialect, self.dtype),
            [pixels],
            ["image_features"],
            dtype=self.dtype,
            opset=self.dialect.opset,
        )
        builder = _Builder("vision", self.dialect.opset)
        value = builder.input(pixels.name, pixels.dtype, pixels.shape)
        (features,) = builder.call(piece, [value], label="", prefix="model.")
        builder.output(features, "image_features", self.dtype, ("images", vision.tokens, hidden))
        return builder.finish()

    def head(self) -> StageGraph:
        """Final norm and LM head on the last position."""
        shape = (1, "tokens", self.text.hidden)
        arguments = [Argument("hidden_states", shape, self.dtype)]
        piece = self._trace("Head", Head, arguments, ["logits"])
        tied = self.text.tied_embeddings
        sources = {
            "norm.weight": "model.language_model.norm.weight",
            "lm_head.weight": "model.language_model.embed_tokens.weight"
            if tied
            else "lm_head.weight",
        }
        builder = _Builder("head", self.dialect.opset)
        value = builder.input("hidden_states", self.dtype, shape)
        (logits,) = builder.call(piece, [value], label="", sources=sources)
        builder.output(logits, "logits", FLOAT, (1, self.text.vocabulary))
        return builder.finish()

    def segment(self, name: str, first: int, last: int, *, scored: bool) -> StageGraph:
        """Layers [first, last), with the scorer's inputs and outputs if `scored`."""
        builder = _Builder(name, self.dialect.opset)
        hidden = builder.input("hidden_states", self.dtype, (1, "tokens", self.text.hidden))
        keep = builder.input("keep_indices", INDEX, ("kept",))
        positions = builder.input("position_ids", INDEX, (1, "kept"))
        past = [
            tuple(
                builder.input(cache, self.dtype, self._cache_shape("past"))
                for cache in cache_names(layer)[:2]
            )
            for layer in range(first, last)
        ]
        scorer_inputs = self._scorer_inputs(builder) if scored else []
        entry = [hidden, keep, positions, past[0][0]]
        hidden, cos, sin, mask = builder.call(self._entry, entry, label="entry", prefix="rope.")
        presents = []
        for layer, (past_key, past_value) in zip(range(first, last), past, strict=True):
            arguments = [hidden, cos, sin, mask, past_key, past_value]
            hidden, key, value, query, keys = builder.call(
                self._layer,
                arguments,
                label=f"layers.{layer}",
                prefix=f"model.language_model.layers.{layer}.",
            )
            presents.append((layer, key, value))
        builder.output(hidden, "hidden_states_out", self.dtype, (1, "kept", self.text.hidden))
        for layer, key, value in presents:
            _, _, key_name, value_name = cache_names(layer)
            builder.output(key, key_name, self.dtype, self._cache_shape("kept"))
            builder.output(value, value_name, self.dtype, self._cache_shape("kept"))
        if scored:
            arguments = [query, key, keys, mask, *scorer_inputs]
            scores = builder.call(self._scorer, arguments, label="scorer")
            for score, score_name in zip(scores, ("scores.self", "scores.cross"), strict=True):
                builder.output(score, score_name, FLOAT, ("kept",))
        return builder.finish()

    def _scorer_inputs(self, builder: _Builder) -> list[ir.Value]:
        return [
            builder.input("visual_weights", FLOAT, ("kept",)),
            builder.input("text_rows", INDEX, ("rows",)),
            builder.input("text_weights", FLOAT, ("rows",)),
        ]


class _Builder:
    """Collects calls of pieces into one graph."""

    def __init__(self, name: str, opset: int) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset, DOMAIN: 1}, name=name)
        self.functions: dict[str, ir.Function] = {}
        self.weights: list[StageWeight] = []
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> ir.Value:
        self.inputs.append(TensorSpec(name, DTYPE_NAMES[dtype], tuple(shape)))
        return self._graph_input(name, dtype, shape)

    def _graph_input(self, name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> ir.Value:
        value = _value(name, dtype, shape)
        self.graph.inputs.append(value)
        return value

    def call(
        self,
        piece: Piece,
        arguments: Sequence[ir.Value],
        *,
        label: str,
        prefix: str = "",
        sources: dict[str, str] | None = None,
    ) -> tuple[ir.Value, ...]:
        self.functions[piece.function.name] = piece.function
        parameters = []
        for weight in piece.weights:
            name = prefix + weight.name
            source = sources[weight.name] if sources else name
            parameters.append(self._graph_input(name, weight.dtype, weight.shape))
            self.weights.append(
                StageWeight(name, source, weight.shape, weight.dtype, weight.transposed)
            )
        node = ir.Node(
            DOMAIN,
            piece.function.name,
            inputs=[*arguments, *parameters],
            num_outputs=len(piece.outputs),
            metadata_props={_CALL: label},
        )
        self.graph.append(node)
        return tuple(node.outputs)

    def output(
        self, value: ir.Value, name: str, dtype: torch.dtype, shape: Sequence[int | str]
    ) -> None:
        self.outputs.append(TensorSpec(name, DTYPE_NAMES[dtype], tuple(shape)))
        value.name = name
        value.type = ir.TensorType(IR_TYPES[dtype])
        value.shape = ir.Shape(shape)
        self.graph.outputs.append(value)

    def finish(self) -> StageGraph:
        model = ir.Model(self.graph, ir_version=IR_VERSION, functions=self.functions.values())
        inline(model)
        _name_outputs(model.graph, [output.name for output in self.outputs])
        return StageGraph(model, tuple(self.inputs), tuple(self.outputs), tuple(self.weights))


def inline(model: ir.Model) -> None:
    """Turns calls of pieces into their nodes and drops the pieces."""
    passes.InlinePass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    _name(model.graph)
    passes.ClearMetadataAndDocStringPass()(model)
    for node in model.graph:
        for value in node.outputs:
            # Each piece named its axes for itself; together those names contradict each other.
            if not value.is_graph_output():
                value.shape = None


def _name(graph: ir.Graph) -> None:
    """Names nodes and values after the modules they come from: `layers.3.mlp.up_proj/MatMul`."""
    used: Counter[str] = Counter()
    for node in graph:
        scope = (node.metadata_props.get(_CALL), node.metadata_props.get(SCOPE))
        name = "/".join((".".join(filter(None, scope)), node.op_type)).lstrip("/")
        node.name = f"{name}_{used[name]}" if used[name] else name
        used[name] += 1
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}_output_{index}"
    for index, value in enumerate(list(graph.initializers.values())):
        value.name = f"constant_{index}"


def _name_outputs(graph: ir.Graph, names: Iterable[str]) -> None:
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _value(name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(IR_TYPES[dtype]))
