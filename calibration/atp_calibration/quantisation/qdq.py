"""Writes INT8 and INT4 into a graph, as Q/DQ pairs that runtimes fuse with the products behind.

Symmetric, as TensorRT demands: INT8 weights per output channel and activations per tensor, INT4
weights per block of inputs. The graph's own dtype goes on around the pairs, so scales have it, too.

In FP16, layers that read the same value by the same scale share its pair, so that TensorRT can make
one product of theirs. In FP32, each has a pair of its own: ONNX Runtime's CPU turns a pair into its
fast unsigned form only if one product reads it. It would find equal pairs and share them again, so
their scales differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from atp_calibration.quantisation.choice import INT4, INT8
from atp_calibration.quantisation.linear_layers import PARTS, LinearLayer, linear_layers
from atp_calibration.quantisation.stored_weights import LARGEST_INT8, quantise_weight
from atp_runtime.errors import InputError

OPSETS = {INT8: 19, INT4: 21}
"""From here on the operators take FP16, and INT4. What a bundle uses of opset 18 is the same."""


@dataclass(frozen=True)
class Form:
    """How a linear layer computes.

    Attributes:
        precision: Of its weight: "int8" or "int4".
        threshold: Of its input, see `Choice`; None leaves that as it is.
        block_size: Inputs that share a scale in INT4.
        feedback: Whether INT4 is rounded with error feedback.
        transposed: Whether its weight was stored [out, in]; quantised ones are [in, out].
    """

    precision: str
    threshold: float | None
    block_size: int = 0
    feedback: bool = False
    transposed: bool = False


Tensors = Callable[[str], ir.TensorProtocol]
"""The stored numbers of that name: a weight's, with `.int8` or `.int4` and `.scale` behind it."""


def quantise(model: ir.Model, ranges: Mapping[str, float]) -> int:
    """Makes the linear layers of a graph INT8 by min-max, in place and in memory.

    Args:
        model: A stage's graph; external weights can be read.
        ranges: What entered the linear layers, see `Ranges`.

    Returns:
        How many layers became INT8; none where a graph is quantised already.

    Raises:
        InputError: A range is missing: the samples never ran the stage.
    """
    if any(node.op_type == "DequantizeLinear" for node in model.graph):
        return 0
    layers = {layer.name: layer for layer in linear_layers(model)}
    forms = {name: Form(INT8, _range(ranges, name)) for name in layers}

    @cache
    def stored(name: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.floating]]:
        weight = layers[name].weight.const_value
        assert weight is not None  # noqa: S101 - an initialiser
        values, scales = quantise_weight(weight.numpy())
        return values, scales.astype(weight.dtype.numpy())

    def tensors(name: str) -> ir.TensorProtocol:
        weight, _, kind = name.rpartition(".")
        return ir.tensor(stored(weight)[kind == "scale"], name=name)

    return insert_pairs(model, forms, tensors)


def insert_pairs(model: ir.Model, forms: Mapping[str, Form], tensors: Tensors) -> int:
    """Quantises linear layers of a graph, in place.

    Args:
        model: A stage's graph.
        forms: Of those that become another precision, by name.
        tensors: What is stored for them.

    Returns:
        How many they are.
    """
    layers = [layer for layer in _all_layers(model) if layer.name in forms]
    if not layers:
        return 0
    opset = model.graph.opset_imports
    opset[""] = max(opset[""], *(OPSETS[forms[layer.name].precision] for layer in layers))
    pairs: dict[ir.Value, list[tuple[float, ir.Value]]] = {}
    for layer in layers:
        form = forms[layer.name]
        if form.threshold is not None:
            made = pairs.setdefault(layer.activation, [])
            same = [pair for threshold, pair in made if threshold == form.threshold]
            if not same or _dtype(layer) == ir.DataType.FLOAT:
                scale = activation_scale(form.threshold)
                same = [_pair(model.graph, layer, scale, len(made))]
                made.append((form.threshold, same[0]))
            layer.node.replace_input_with(0, same[0])
        restored = _stored(model.graph, layer, form, tensors)
        if layer.transposed:
            _become_matmul(model.graph, layer.node, restored)
        else:
            layer.node.replace_input_with(1, restored)
    for layer in layers:
        model.graph.initializers.pop(layer.name, None)
    return len(layers)


def activation_scale(largest: float) -> float:
    """Of a tensor whose largest magnitude is `largest`; any scale will do for one of zeros."""
    return largest / LARGEST_INT8 if largest > 0 else 1.0


def _all_layers(model: ir.Model) -> list[LinearLayer]:
    return list(linear_layers(model, frozenset(PARTS)))


def _range(ranges: Mapping[str, float], name: str) -> float:
    if name not in ranges:
        raise InputError(
            f"no range of {name}'s input",
            why="the samples never ran the stage that it is in.",
            fix="calibrate with samples that have images and questions.",
        )
    return ranges[name]


def _pair(graph: ir.Graph, layer: LinearLayer, scale: float, number: int) -> ir.Value:
    """A layer's input, quantised and back, ahead of it; `number` tells pairs of a value apart."""
    value, dtype = layer.activation, _dtype(layer)
    name = f"{value.name}.{number}" if number else str(value.name)
    kind = dtype.numpy().type
    least = np.finfo(kind).tiny  # in FP16 a scale may end up as zero
    stored = np.array(max(kind(scale), least), kind)
    for _ in range(number):
        stored = np.nextafter(stored, kind(np.inf))
    scales = _initialiser(graph, ir.tensor(np.array(stored), name=f"{name}.scale"))
    zero = _initialiser(graph, ir.tensor(np.array(0, np.int8), name=f"{name}.zero"))
    down = ir.node("QuantizeLinear", [value, scales, zero], name=f"{name}/QuantizeLinear")
    up = ir.node(
        "DequantizeLinear", [down.outputs[0], scales, zero], name=f"{name}/DequantizeLinear"
    )
    graph.insert_before(layer.node, [down, up])
    return up.outputs[0]


def _stored(graph: ir.Graph, layer: LinearLayer, form: Form, tensors: Tensors) -> ir.Value:
    """A stored weight, dequantised ahead of its layer."""
    values = _initialiser(graph, tensors(f"{layer.name}.{form.precision}"))
    scales = _initialiser(graph, tensors(f"{layer.name}.scale"))
    inputs = [values, scales]
    attributes = {"axis": 0, "block_size": form.block_size}
    if form.precision == INT8:
        attributes = {"axis": 1}
        outputs = int(scales.shape[0]) if scales.shape is not None else 0
        zero = ir.tensor(np.zeros(outputs, np.int8), name=f"{layer.name}.zero")
        inputs.append(_initialiser(graph, zero))
    name = f"{layer.name}/DequantizeLinear"
    up = ir.node("DequantizeLinear", inputs, attributes, name=name)
    graph.insert_before(layer.node, [up])
    return up.outputs[0]


def _become_matmul(graph: ir.Graph, gemm: ir.Node, weight: ir.Value) -> None:
    """Puts a MatMul with a weight [in, out] in a Gemm's place: runtimes fuse that with pairs."""
    product = ir.node("MatMul", [gemm.inputs[0], weight], name=gemm.name)
    before, after = gemm.outputs[0], product.outputs[0]
    after.name, after.type, after.shape = before.name, before.type, before.shape
    graph.insert_before(gemm, [product])
    for use in tuple(before.uses()):
        use.node.replace_input_with(use.idx, after)
    for number, output in enumerate(graph.outputs):
        if output is before:
            graph.outputs[number] = after
    graph.remove(gemm, safe=True)


def _dtype(layer: LinearLayer) -> ir.DataType:
    """The dtype of a linear layer: its weight's, which is always known."""
    assert layer.weight.const_value is not None  # noqa: S101 - an initialiser
    return layer.weight.const_value.dtype


def _initialiser(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tensor.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
