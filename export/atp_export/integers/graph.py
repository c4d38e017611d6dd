"""Puts stored integers into a stage's graph, and what they need around them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from atp_calibration.quantisation.choice import INT4, INT8
from atp_calibration.quantisation.linear_layers import PARTS, LinearLayer, linear_layers
from atp_calibration.quantisation.qdq import insert_pairs
from atp_export.integers.stored import MULTIPLIER, ORDER, SHIFT, StoredLayer
from atp_export.plan import DTYPE_NAMES
from atp_export.stage_graph import IR_TYPES

Places = Mapping[str, tuple[str, int]]
"""Files and offsets in bytes, by the names of pieces."""
_KINDS = {INT4: ir.DataType.INT4, INT8: ir.DataType.INT8, ORDER: ir.DataType.INT64}
_BEFORE: tuple[tuple[str, str, dict[str, int]], ...] = (
    (MULTIPLIER, "Mul", {}),
    (ORDER, "Gather", {"axis": -1}),
)


def insert_integers(model: ir.Model, layers: Mapping[str, StoredLayer], places: Places) -> None:
    """Makes linear layers of a graph compute with stored integers, in place.

    Args:
        model: A stage's graph; the weights of these layers are initialisers without data.
        layers: By their weights' names.
        places: Where their pieces lie.
    """
    found = [it for it in linear_layers(model, frozenset(PARTS)) if it.name in layers]
    insertion = _Insertion(model.graph, layers, places)
    read = {layer.name: insertion.prepare(layer) for layer in found}
    # The nodes are known by their names: a Gemm becomes a MatMul.
    nodes = {layer.name: (layer.node.name, layer.transposed) for layer in found}
    insert_pairs(model, {name: layers[name].form for name in nodes}, insertion.tensor)
    products = {node.name: node for node in model.graph}
    for name, (node, is_row) in nodes.items():
        if SHIFT in layers[name].pieces:
            insertion.shift(products[node], name, read[name], is_row=is_row)


class _Insertion:
    """Adds nodes to one graph; layers that read the same value share what is made of it."""

    def __init__(self, graph: ir.Graph, layers: Mapping[str, StoredLayer], places: Places) -> None:
        self._graph = graph
        self._layers = layers
        self._places = places
        self._kinds = {
            piece.name: (kind, layer)
            for layer in layers.values()
            for kind, piece in layer.pieces.items()
        }
        self._made: dict[tuple[ir.Value, str], ir.Value] = {}
        self._means: dict[ir.Value, ir.Value] = {}

    def prepare(self, layer: LinearLayer) -> ir.Value:
        """Scales and orders a layer's input, if that is wanted; returns what it reads now."""
        pieces, value = self._layers[layer.name].pieces, layer.activation
        for kind, operator, attributes in _BEFORE:
            if kind in pieces:
                key = value, pieces[kind].name
                if key not in self._made:
                    inputs = [value, self._initialiser(pieces[kind].name)]
                    made = self._add(operator, inputs, layer.name, attributes, before=layer.node)
                    self._made[key] = made
                value = self._made[key]
        layer.node.replace_input_with(0, value)
        return value

    def shift(self, product: ir.Node, name: str, value: ir.Value, *, is_row: bool) -> None:
        """Adds what zero points make of a layer's input to its product.

        Args:
            product: The layer's MatMul.
            name: Of its weight.
            value: T [..., in] that it reads.
            is_row: Whether that is T [rows, in]; elsewhere it has one more axis.
        """
        shifts = self._initialiser(self._layers[name].pieces[SHIFT].name)
        if value not in self._means:
            self._means[value] = self._mean(product, name, value, [0] if is_row else [0, 0])
        shifted = self._add("MatMul", [self._means[value], shifts], name, before=product)
        before = product.outputs[0]
        uses = tuple(before.uses())
        total = ir.node("Add", [before, shifted], name=f"{name}/Add")
        self._graph.insert_after(product, [total])
        after = total.outputs[0]
        for use in uses:
            use.node.replace_input_with(use.idx, after)
        after.type, after.shape = before.type, before.shape
        for number, output in enumerate(self._graph.outputs):
            if output is before:
                self._graph.outputs[number] = after
                after.name, before.name = before.name, f"{name}/MatMul_output_0"

    def _mean(self, product: ir.Node, name: str, value: ir.Value, copied: list[int]) -> ir.Value:
        """T [..., blocks], of the blocks of a value T [..., in]."""
        layer = self._layers[name]
        blocks = layer.pieces[SHIFT].shape[0]
        shape = self._constant(f"{name}/blocks", [*copied, blocks, layer.form.block_size])
        axes = self._constant(f"{name}/axes", [-1])
        split = self._add("Reshape", [value, shape], name, before=product)
        return self._add("ReduceMean", [split, axes], name, {"keepdims": 0}, before=product)

    def _add(
        self,
        operator: str,
        inputs: list[ir.Value],
        name: str,
        attributes: Mapping[str, int] | None = None,
        *,
        before: ir.Node,
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes, name=f"{name}/{operator}")
        self._graph.insert_before(before, [node])
        node.outputs[0].name = f"{name}/{operator}_output_0"
        return node.outputs[0]

    def tensor(self, name: str) -> ir.ExternalTensor:
        """A piece, in its file."""
        kind, layer = self._kinds[name]
        piece, (location, offset) = layer.pieces[kind], self._places[name]
        dtype = _KINDS[kind] if kind in _KINDS else IR_TYPES[DTYPE_NAMES[piece.dtype]]
        shape = ir.Shape(layer.shape if kind == INT4 else piece.shape)
        return ir.ExternalTensor(location, offset, piece.nbytes, dtype, shape=shape, name=name)

    def _initialiser(self, name: str) -> ir.Value:
        held = self._graph.initializers.get(name)
        return self._register(self.tensor(name)) if held is None else held

    def _constant(self, name: str, numbers: list[int]) -> ir.Value:
        return self._register(ir.tensor(np.array(numbers, np.int64), name=name))

    def _register(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value
