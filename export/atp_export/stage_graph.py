"""Collects calls of pieces into the flat graph of a stage, with readable names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from atp_export.plan import DTYPE_NAMES
from atp_export.signatures import Signature
from atp_export.trace import DOMAIN, SCOPE, Piece
from atp_runtime.manifest import TensorSpec

# The newest that TensorRT 10.3 reads.
IR_VERSION = 10
IR_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int64": ir.DataType.INT64,
}
_CALL = "call"  # metadata of a node: the part of the stage it belongs to


@dataclass(frozen=True)
class WeightPart:
    """Which rows or columns of a checkpoint's tensor a weight is.

    Attributes:
        axis: 0 or 1, of the tensor as the checkpoint has it.
        spans: First and one past the last, of each piece, in the weight's order.
    """

    axis: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StageWeight:
    """A weight of a stage's graph.

    Attributes:
        name: Its initialiser's name in the graph.
        source: The checkpoint's tensor, by canonical name.
        shape: As the graph uses it.
        dtype: As the graph uses it.
        transposed: The graph wants the checkpoint's [out, in] as [in, out].
        first_row: Where in the checkpoint's tensor it begins, along the first axis.
        part: Of the checkpoint's tensor; None is all of it.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool
    first_row: int = 0
    part: WeightPart | None = None

    @property
    def skipped_bytes(self) -> int:
        """Bytes of the rows before `first_row`, in the graph's dtype."""
        return self.first_row * self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes in the data file, without alignment."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class StageGraph:
    """A stage's graph with its weights still to be filled in.

    Attributes:
        model: Weights are graph inputs after those of the signature.
        signature: The contract's inputs and outputs.
        weights: In the order of the remaining graph inputs.
    """

    model: ir.Model
    signature: Signature
    weights: tuple[StageWeight, ...]

    @property
    def name(self) -> str:
        """The stage's name."""
        return str(self.model.graph.name)


class StageBuilder:
    """Makes one stage's graph.

    Attributes:
        inputs: The values of the signature's inputs, by name.
    """

    def __init__(self, name: str, signature: Signature, *, opset: int) -> None:
        self._signature = signature
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": opset, DOMAIN: 1}, name=name)
        self._functions: dict[str, ir.Function] = {}
        self._weights: list[StageWeight] = []
        self.inputs = {spec.name: self._graph_input(spec) for spec in signature.inputs}

    def _graph_input(self, spec: TensorSpec) -> ir.Value:
        value = ir.Value(
            name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(IR_TYPES[spec.dtype])
        )
        self._graph.inputs.append(value)
        return value

    def call(
        self,
        piece: Piece,
        arguments: Sequence[ir.Value],
        *,
        label: str,
        names: Mapping[str, str] = MappingProxyType({}),
        sources: Mapping[str, str] = MappingProxyType({}),
        first_rows: Mapping[str, int] = MappingProxyType({}),
        parts: Mapping[str, WeightPart] = MappingProxyType({}),
    ) -> tuple[ir.Value, ...]:
        """Adds a piece to the graph.

        Args:
            piece: What to call.
            arguments: The values of its inputs.
            label: What its nodes' names begin with; may be empty.
            names: What its weights are called in the graph, where not as in the piece.
            sources: What they are called in the checkpoint, where not as in the graph.
            first_rows: Of weights that are a part of the checkpoint's tensor, by their names.
            parts: Of weights that are rows or columns of it, likewise.

        Returns:
            The values of its outputs.
        """
        self._functions[piece.function.name] = piece.function
        parameters = []
        for weight in piece.weights:
            name = names.get(weight.name, weight.name)
            source = sources.get(name, name)
            spec = TensorSpec(name, DTYPE_NAMES[weight.dtype], weight.shape)
            parameters.append(self._graph_input(spec))
            row, part = first_rows.get(name, 0), parts.get(name)
            self._weights.append(
                StageWeight(name, source, weight.shape, weight.dtype, weight.transposed, row, part)
            )
        node = ir.Node(
            DOMAIN,
            piece.function.name,
            inputs=[*arguments, *parameters],
            num_outputs=len(piece.function.outputs),
            metadata_props={_CALL: label},
        )
        self._graph.append(node)
        return tuple(node.outputs)

    def constant(self, values: Sequence[int]) -> ir.Value:
        """Adds int64 numbers that no checkpoint holds."""
        tensor = ir.tensor(np.array(values, dtype=np.int64))
        node = ir.node("Constant", [], {"value": tensor})
        self._graph.append(node)
        return node.outputs[0]

    def concatenate(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """Puts values side by side."""
        node = ir.node("Concat", values, {"axis": axis})
        self._graph.append(node)
        return node.outputs[0]

    def finish(self, outputs: Mapping[str, ir.Value]) -> StageGraph:
        """Inlines the pieces.

        Args:
            outputs: The values of the signature's outputs, by name.
        """
        for spec in self._signature.outputs:
            value = outputs[spec.name]
            value.type = ir.TensorType(IR_TYPES[spec.dtype])
            value.shape = ir.Shape(spec.shape)
            self._graph.outputs.append(value)
        model = ir.Model(self._graph, ir_version=IR_VERSION, functions=self._functions.values())
        _inline(model)
        for value, spec in zip(self._graph.outputs, self._signature.outputs, strict=True):
            value.name = spec.name
        return StageGraph(model, self._signature, tuple(self._weights))


def _inline(model: ir.Model) -> None:
    """Turns calls of pieces into their nodes and drops the pieces."""
    passes.InlinePass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    _name_by_origin(model.graph)
    passes.ClearMetadataAndDocStringPass()(model)
    for node in model.graph:
        for value in node.outputs:
            # Each piece named its axes for itself; together those names contradict each other.
            if not value.is_graph_output():
                value.shape = None


def _name_by_origin(graph: ir.Graph) -> None:
    """Names nodes and values after the modules they come from: `layers.3.mlp.up_proj/MatMul`."""
    used: Counter[str] = Counter()
    for node in graph:
        scope = ".".join(filter(None, (node.metadata_props.get(k) for k in (_CALL, SCOPE))))
        name = f"{scope}/{node.op_type}".lstrip("/")
        node.name = f"{name}_{used[name]}" if used[name] else name
        used[name] += 1
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}_output_{index}"
    for index, value in enumerate(list(graph.initializers.values())):
        value.name = f"constant_{index}"
