"""Writes INT8 into a graph: Q/DQ pairs that TensorRT fuses into the products behind them.

Symmetric, as TensorRT demands: weights per output channel, activations per tensor. The graph's
own dtype goes on around the pairs, so scales have it, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from atp_calibration.quantisation.linear_layers import linear_layers
from atp_runtime.errors import InputError

QDQ_OPSET = 19
"""From here on QuantizeLinear takes FP16. What a bundle uses of opset 18 is the same in 19."""
_LARGEST = 127


def quantise(model: ir.Model, ranges: Mapping[str, float]) -> int:
    """Makes the linear layers of a graph INT8, in place.

    Args:
        model: A stage's graph; external weights can be read.
        ranges: What entered the linear layers, see `Ranges`.

    Returns:
        How many layers became INT8.

    Raises:
        InputError: A range is missing: the samples never ran the stage.
    """
    opset = model.graph.opset_imports
    opset[""] = max(opset[""], QDQ_OPSET)
    activations: dict[ir.Value, ir.Value] = {}
    weights: dict[ir.Value, ir.Value] = {}
    layers = list(linear_layers(model))
    for layer in layers:
        if layer.activation not in activations:
            scale = activation_scale(_range(ranges, layer.name))
            activations[layer.activation] = _pair(model.graph, layer.node, layer.activation, scale)
        if layer.weight not in weights:
            weights[layer.weight] = _stored(model.graph, layer.node, layer.weight)
        layer.node.replace_input_with(0, activations[layer.activation])
        layer.node.replace_input_with(1, weights[layer.weight])
    for weight in weights:
        del model.graph.initializers[str(weight.name)]
    return len(layers)


def activation_scale(largest: float) -> float:
    """Of a tensor whose largest magnitude is `largest`; any scale will do for one of zeros."""
    return largest / _LARGEST if largest > 0 else 1.0


def quantise_weight(
    weight: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric INT8 per output channel.

    Args:
        weight: [in, out].

    Returns:
        int8 [in, out] and float32 scales [out].
    """
    largest = np.abs(weight).max(axis=0).astype(np.float32)
    scale = np.where(largest > 0, largest / _LARGEST, np.float32(1))
    rounded = np.rint(weight.astype(np.float32) / scale)
    return np.clip(rounded, -_LARGEST, _LARGEST).astype(np.int8), scale


def _range(ranges: Mapping[str, float], name: str) -> float:
    if name not in ranges:
        raise InputError(
            f"no range of {name}'s input",
            why="the samples never ran the stage that it is in.",
            fix="calibrate with samples that have images and questions.",
        )
    return ranges[name]


def _pair(graph: ir.Graph, before: ir.Node, value: ir.Value, scale: float) -> ir.Value:
    """The value, quantised and back, ahead of a node."""
    dtype = _float_type(before)
    scales = _initialiser(graph, f"{value.name}.scale", np.array(scale, dtype.numpy()))
    zero = _initialiser(graph, f"{value.name}.zero", np.array(0, np.int8))
    down = ir.node("QuantizeLinear", [value, scales, zero], name=f"{value.name}/QuantizeLinear")
    up = ir.node(
        "DequantizeLinear",
        [down.outputs[0], scales, zero],
        name=f"{value.name}/DequantizeLinear",
    )
    graph.insert_before(before, [down, up])
    return up.outputs[0]


def _stored(graph: ir.Graph, before: ir.Node, weight: ir.Value) -> ir.Value:
    """An INT8 weight, dequantised ahead of a node."""
    assert weight.const_value is not None  # noqa: S101 - an initialiser
    values, scales = quantise_weight(weight.const_value.numpy())
    dtype = weight.const_value.dtype
    up = ir.node(
        "DequantizeLinear",
        [
            _initialiser(graph, f"{weight.name}.int8", values),
            _initialiser(graph, f"{weight.name}.scale", scales.astype(dtype.numpy())),
            _initialiser(graph, f"{weight.name}.zero", np.zeros(len(scales), np.int8)),
        ],
        {"axis": 1},
        name=f"{weight.name}/DequantizeLinear",
    )
    graph.insert_before(before, [up])
    return up.outputs[0]


def _float_type(node: ir.Node) -> ir.DataType:
    """The dtype of a linear layer: its weight's, which is always known."""
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None  # noqa: S101, PT018
    return weight.const_value.dtype


def _initialiser(graph: ir.Graph, name: str, values: npt.NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(values, name=name)
    value = ir.Value(
        name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
