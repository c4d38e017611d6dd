"""Which nodes of a stage's graph are the linear layers that INT8 pays for.

A product of activations with a stored matrix is one. Attention's products, the scorer's and the
LM head's Gemm are not, and the projector stays in the precision of the bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

_HIGH_PRECISION = ("multi_modal_projector",)


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A MatMul of T [..., in] with a weight T [in, out].

    Attributes:
        node: The MatMul.
        activation: Its first input.
        weight: Its second, an initialiser.
    """

    node: ir.Node
    activation: ir.Value
    weight: ir.Value

    @property
    def name(self) -> str:
        """The weight's name in the checkpoint, the same in every dialect."""
        return str(self.weight.name)


def linear_layers(model: ir.Model) -> Iterator[LinearLayer]:
    """The linear layers of a stage, in the order they run."""
    for node in model.graph:
        if node.op_type != "MatMul" or str(node.name).startswith(_HIGH_PRECISION):
            continue
        activation, weight = node.inputs
        stored = weight is not None and weight.is_initializer()
        if activation is not None and weight is not None and stored and _is_matrix(weight):
            yield LinearLayer(node, activation, weight)


def _is_matrix(weight: ir.Value) -> bool:
    return weight.shape is not None and len(weight.shape) == 2
