"""Puts layers that hide work from visual tokens into a segment's graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from atp_export.stage_graph import StageBuilder
from atp_export.structured_pieces import StructuredPieces
from atp_export.trace import Piece
from atp_models.architecture import TextSpec
from atp_runtime.structure import Structure
from atp_runtime.tensor_names import PLACES

_MASK = 3  # of a layer's arguments


class MaskedSegment:
    """The masked layers of one segment.

    Args:
        builder: Of its graph.
        pieces: To compose of.
        text: The decoder.
        structure: What is hidden.
        past_key: Of any layer, for its length.
    """

    def __init__(
        self,
        builder: StageBuilder,
        pieces: StructuredPieces,
        text: TextSpec,
        structure: Structure,
        past_key: ir.Value,
    ) -> None:
        self._builder, self._pieces, self._text = builder, pieces, text
        self._structure = structure
        inputs = builder.inputs
        self._places = inputs[PLACES]
        arguments = [inputs["position_ids"], inputs["past_length"], past_key, self._places]
        entry = pieces.masked_entry(structure.window)
        (self._mask,) = builder.call(entry, arguments, label="window")

    def piece(self, _number: int) -> Piece:
        """The kind of a layer: all are alike."""
        return self._pieces.masked_layer(self._structure.ffn_ratio)

    def layer(
        self, number: int, arguments: Sequence[ir.Value], names: Mapping[str, str]
    ) -> tuple[ir.Value, ...]:
        """Adds a layer, see `StructuredSegment.layer`."""
        given, counted = head_marks(self._structure, number, self._text)
        return self._builder.call(
            self.piece(number),
            [
                *arguments[:_MASK],
                self._mask,
                *arguments[_MASK + 1 :],
                self._places,
                self._builder.constant(given),
                self._builder.constant(counted),
            ],
            label=f"layers.{number}",
            names=names,
        )


def head_marks(structure: Structure, layer: int, text: TextSpec) -> tuple[list[int], list[int]]:
    """1 for heads that visual tokens get something of, and for those in which their values count.

    From the cut on their values count in none, as the authors' code has it.
    """
    kept = structure.kept_heads(layer, text.heads)
    given = [int(head in kept) for head in range(text.heads)]
    cut = structure.cut_layer is not None and layer >= structure.cut_layer
    group = text.heads // text.kv_heads
    return given, [0] * text.kv_heads if cut else given[::group]
