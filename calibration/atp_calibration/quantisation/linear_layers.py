"""Which nodes of a stage's graph are the linear layers that quantisation pays for.

A product of activations with a stored matrix is one. Attention's products and the scorer's are not,
nor those of the question that a tower or a compressor is told;
the projector, with the compressor before it, and the LM head stay in the precision of the bundle
unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

PARTS = ("decoder", "vision", "projector", "head")
USUAL_PARTS = frozenset({"decoder", "vision"})
_PROJECTOR, _TOWER = ("multi_modal_projector", "quecc"), "vision_tower"
_QUESTION = ("question", "quecc.text")
_HEAD = "Gemm"  # the only one there is


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A product of T [..., in] with a stored weight.

    Attributes:
        node: A MatMul with a weight T [in, out]; or the LM head's Gemm, whose weight is T [out, in]
            as the token table is.
        activation: Its first input.
        weight: Its second, an initialiser.
    """

    node: ir.Node
    activation: ir.Value
    weight: ir.Value

    @property
    def transposed(self) -> bool:
        """Whether the weight is T [out, in]."""
        return str(self.node.op_type) == _HEAD

    @property
    def name(self) -> str:
        """The weight's name in the checkpoint, the same in every dialect."""
        return str(self.weight.name)

    @property
    def channels(self) -> int:
        """in, the width of its input."""
        assert self.weight.shape is not None  # noqa: S101 - an initialiser
        return int(self.weight.shape[1 if self.transposed else 0])


def linear_layers(model: ir.Model, parts: frozenset[str] | None = None) -> Iterator[LinearLayer]:
    """The linear layers of a stage, in the order they run.

    Args:
        model: Its graph.
        parts: Of these parts of the network, see `PARTS`; None is `USUAL_PARTS`.
    """
    wanted = USUAL_PARTS if parts is None else parts
    for node in model.graph:
        if node.op_type not in ("MatMul", _HEAD) or _part(node) not in wanted:
            continue
        activation, weight = node.inputs
        stored = weight is not None and weight.is_initializer()
        if activation is not None and weight is not None and stored and _is_matrix(weight):
            yield LinearLayer(node, activation, weight)


def _part(node: ir.Node) -> str:
    if node.op_type == _HEAD:
        return "head"
    name = str(node.name)
    if name.startswith(_QUESTION):
        return "scorer"
    if name.startswith(_PROJECTOR):
        return "projector"
    return "vision" if name.startswith(_TOWER) else "decoder"


def _is_matrix(weight: ir.Value) -> bool:
    return weight.shape is not None and len(weight.shape) == 2
