"""Which nodes of a stage's graph are the linear layers that quantisation pays for.

A product of activations with a stored matrix is one. Attention's products, the scorer's and the
LM head's Gemm are not, and the projector stays in the precision of the bundle unless it is asked
for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

PARTS = ("decoder", "vision", "projector")
USUAL_PARTS = frozenset({"decoder", "vision"})
_PROJECTOR, _TOWER = "multi_modal_projector", "vision_tower"


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

    @property
    def channels(self) -> int:
        """in, the width of its input."""
        assert self.weight.shape is not None  # noqa: S101 - an initialiser
        return int(self.weight.shape[0])


def linear_layers(model: ir.Model, parts: frozenset[str] | None = None) -> Iterator[LinearLayer]:
    """The linear layers of a stage, in the order they run.

    Args:
        model: Its graph.
        parts: Of these parts of the network, see `PARTS`; None is `USUAL_PARTS`.
    """
    wanted = USUAL_PARTS if parts is None else parts
    for node in model.graph:
        if node.op_type != "MatMul" or _part(node) not in wanted:
            continue
        activation, weight = node.inputs
        stored = weight is not None and weight.is_initializer()
        if activation is not None and weight is not None and stored and _is_matrix(weight):
            yield LinearLayer(node, activation, weight)


def _part(node: ir.Node) -> str:
    name = str(node.name)
    if name.startswith(_PROJECTOR):
        return "projector"
    return "vision" if name.startswith(_TOWER) else "decoder"


def _is_matrix(weight: ir.Value) -> bool:
    return weight.shape is not None and len(weight.shape) == 2
