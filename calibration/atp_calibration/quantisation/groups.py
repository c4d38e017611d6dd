"""Linear layers that read the same value, and whether a scale can go into what is before them.

SmoothQuant (arXiv 2211.10438) and AWQ (arXiv 2306.00978) divide a linear layer's input by a scale
per channel and multiply its weight by it. That costs nothing where the division goes into stored
numbers: the weights of the norm before (q, k, v, gate, up, fc1), the columns of the layer whose
output is multiplied by the gate (down), or those of v (o), because attention mixes the rows of v,
each column by itself. Elsewhere (fc2) there is no such place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from atp_calibration.quantisation.linear_layers import LinearLayer, linear_layers
from atp_calibration.quantisation.shared_heads import SharedHeads

_NORMS = ("RMSNormalization", "LayerNormalization")
_MIXED = re.compile(r"\.(o|out)_proj\.weight$")  # towers have the longer name


@dataclass(frozen=True)
class Fold:
    """Where the division goes, exactly.

    Attributes:
        vectors: Initialisers [in]: a norm's weight and bias, or the bias of `columns`.
        columns: The weight [..., in] of the linear layer before, or None.
        heads: How the channels come from those columns, if they are the values of attention.
    """

    vectors: tuple[str, ...]
    columns: str | None = None
    heads: SharedHeads | None = None


@dataclass(frozen=True)
class Group:
    """Linear layers that read the same value.

    Attributes:
        layers: Their names, in the order they run. They are the same in every dialect.
        channels: in, the width of the value.
        fold: Where a scale goes; None if nowhere.
    """

    layers: tuple[str, ...]
    channels: int
    fold: Fold | None

    @property
    def first(self) -> str:
        """What the group is known by."""
        return self.layers[0]


def find_groups(model: ir.Model, parts: frozenset[str] | None = None) -> tuple[Group, ...]:
    """The groups of a stage, in the order they run.

    Args:
        model: Its graph.
        parts: See `linear_layers`.
    """
    readers: dict[ir.Value, list[LinearLayer]] = {}
    named: dict[str, LinearLayer] = {}
    for layer in linear_layers(model, parts):
        named[layer.name] = layer
        readers.setdefault(layer.activation, []).append(layer)
    return tuple(
        Group(
            tuple(layer.name for layer in layers), layers[0].channels, _fold(value, layers, named)
        )
        for value, layers in readers.items()
    )


def _fold(
    value: ir.Value, layers: Sequence[LinearLayer], named: Mapping[str, LinearLayer]
) -> Fold | None:
    nodes = {layer.node for layer in layers}
    # The head's weight may be the token table, which nothing multiplies.
    fixed = any(layer.transposed for layer in layers)
    if fixed or value.is_graph_output() or any(use.node not in nodes for use in value.uses()):
        return None
    name, channels = layers[0].name, layers[0].channels
    if _MIXED.search(name):
        values = named.get(_MIXED.sub(".v_proj.weight", name))
        return None if values is None else _of_values(values, channels)
    return _of_producer(value, channels)


def _of_producer(value: ir.Value, channels: int) -> Fold | None:
    """What made the value: a norm, or a product."""
    node = value.producer()
    while node is not None and node.op_type == "Cast":
        before = node.inputs[0]
        if before is None or not _used_once(before):
            return None
        node = before.producer()
    if node is not None and node.op_type in _NORMS:
        return _of_vectors(node.inputs[1:], channels)
    if node is not None and node.op_type == "Mul":
        return _of_product(node, channels)
    return None


def _of_values(values: LinearLayer, channels: int) -> Fold | None:
    """The columns of v, if they become heads at once; query heads may share them."""
    assert values.weight.shape is not None  # noqa: S101 - an initialiser
    width = int(values.weight.shape[1])
    value, use = _first_use(values.node)
    if use.op_type == "Add":  # a bias
        value, use = _first_use(use)
    shape = use.inputs[1] if use.op_type == "Reshape" else None
    found = _of_layer(value, width)
    if found is None or shape is None or shape.const_value is None:
        return None
    head_dim = int(shape.const_value.numpy()[-1])
    return replace(found, heads=SharedHeads(channels // width, head_dim))


def _first_use(node: ir.Node) -> tuple[ir.Value, ir.Node]:
    value = node.outputs[0]
    return value, next(iter(value.uses())).node


def _of_product(node: ir.Node, channels: int) -> Fold | None:
    """A norm written out ends with the product with its weight, a gated MLP with that of two."""
    for factor in node.inputs:
        assert factor is not None  # noqa: S101 - Mul has no optional inputs
        found = _of_vectors([factor], channels) or _of_layer(factor, channels)
        if found:
            return found
    return None


def _of_vectors(values: Sequence[ir.Value | None], channels: int) -> Fold | None:
    names = []
    for value in values:
        stored = _stored(value)
        if stored is None or stored.shape is None or list(stored.shape) != [channels]:
            return None
        names.append(str(stored.name))
    return Fold(tuple(names))


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The initialiser that a value is, perhaps in another dtype, if it has no other use."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or node.op_type != "Cast" or not _used_once(value):
            return None
        value = node.inputs[0]
    return value if value is not None and _used_once(value) else None


def _of_layer(value: ir.Value, channels: int) -> Fold | None:
    """The output of a linear layer, its bias added or not."""
    if not _used_once(value):
        return None
    node, vectors = value.producer(), Fold(())
    if node is not None and node.op_type == "Add":
        product, bias = node.inputs
        found = _of_vectors([bias], channels)
        if found is None or product is None or not _used_once(product):
            return None
        node, vectors = product.producer(), found
    if node is None or node.op_type != "MatMul":
        return None
    weight = _stored(node.inputs[1])
    return None if weight is None else Fold(vectors.vectors, str(weight.name))


def _used_once(value: ir.Value) -> bool:
    return not value.is_graph_output() and len(list(value.uses())) == 1
