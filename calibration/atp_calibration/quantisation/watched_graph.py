"""Adds outputs to a graph that tell what enters its linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from atp_calibration.quantisation.linear_layers import LinearLayer

DRAW = "calibration.draw"
"""Input: float32 [drawn] in 0 .. 1, the places of the tokens to hand out."""
_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True)
class Watched:
    """A value that linear layers read, and the outputs that tell about it.

    Attributes:
        layers: Their names, in the order they run.
        count: int64 [], tokens.
        largest: float32 [in], magnitudes over all tokens.
        mean: float32 [in], likewise.
        rows: float32 [drawn, in], the tokens at the places of `DRAW`.
        extreme: float32 [in], the token with the largest magnitude.
    """

    layers: tuple[str, ...]
    count: str
    largest: str
    mean: str
    rows: str
    extreme: str

    @property
    def first(self) -> str:
        """What the value is known by, the same in every dialect."""
        return self.layers[0]


def watch_inputs(model: ir.Model, layers: Sequence[LinearLayer]) -> tuple[Watched, ...]:
    """Adds the outputs, and `DRAW` to the inputs.

    Args:
        model: A stage's graph, changed in place.
        layers: Its linear layers; those that read the same value share what is told of it.
    """
    draw = ir.Value(name=DRAW, type=ir.TensorType(_FLOAT), shape=ir.Shape(["drawn"]))
    model.graph.inputs.append(draw)
    readers: dict[ir.Value, list[LinearLayer]] = {}
    for layer in layers:
        readers.setdefault(layer.activation, []).append(layer)
    return tuple(
        _Watcher(model.graph, f"calibration.{number}").watch(value, users, draw)
        for number, (value, users) in enumerate(readers.items())
    )


class _Watcher:
    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph = graph
        self._prefix = prefix

    def watch(self, value: ir.Value, users: Sequence[LinearLayer], draw: ir.Value) -> Watched:
        """Tokens go behind one another, however many axes they had."""
        channels = users[0].channels
        wide = self._add("Cast", [value], to=_FLOAT)
        flat = self._add("Reshape", [wide, self._constant("shape", [-1, channels])])
        first = self._constant("first", [0])
        last = self._constant("last", [1])
        magnitude = self._add("Abs", [flat])
        count = self._add("Gather", [self._add("Shape", [flat]), self._constant("axis", 0)])
        places = self._add("Mul", [draw, self._add("Cast", [count], to=_FLOAT)])
        rows = self._add("Gather", [flat, self._add("Cast", [places], to=_INT64)])
        peaks = self._add("ReduceMax", [magnitude, last], keepdims=0)
        extreme = self._add("Gather", [flat, self._add("ArgMax", [peaks], axis=0, keepdims=0)])
        return Watched(
            tuple(layer.name for layer in users),
            count=self._output("count", count, _INT64, []),
            largest=self._output(
                "largest",
                self._add("ReduceMax", [magnitude, first], keepdims=0),
                _FLOAT,
                [channels],
            ),
            mean=self._output(
                "mean", self._add("ReduceMean", [magnitude, first], keepdims=0), _FLOAT, [channels]
            ),
            rows=self._output("rows", rows, _FLOAT, ["drawn", channels]),
            extreme=self._output("extreme", extreme, _FLOAT, [channels]),
        )

    def _add(self, operator: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        self._graph.append(node)
        return node.outputs[0]

    def _constant(self, name: str, value: int | list[int]) -> ir.Value:
        tensor = ir.tensor(np.array(value, np.int64), name=f"{self._prefix}.{name}")
        constant = ir.Value(
            name=tensor.name,
            shape=tensor.shape,
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(constant)
        return constant

    def _output(
        self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]
    ) -> str:
        output = f"{self._prefix}.{name}.out"
        value.name = output
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        self._graph.outputs.append(value)
        return output
