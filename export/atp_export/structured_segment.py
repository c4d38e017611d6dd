"""Puts layers that spare visual tokens work into a segment's graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from atp_export.stage_graph import StageBuilder, WeightPart
from atp_export.structured_pieces import StructuredPieces
from atp_export.trace import Piece
from atp_models.architecture import ModelSpec, TextSpec
from atp_runtime.structure import Structure
from atp_runtime.structure_rows import Blocks
from atp_runtime.tensor_names import ROWS, WINDOW

LANGUAGE = "_language"
"""What the names of matrices end in that visual tokens do not use."""


class StructuredSegment:
    """The structured layers of one segment.

    Args:
        builder: Of its graph.
        pieces: To compose of.
        spec: The model.
        structure: What visual tokens are spared.
        past_key: Of any layer, for its length.
    """

    def __init__(
        self,
        builder: StageBuilder,
        pieces: StructuredPieces,
        spec: ModelSpec,
        structure: Structure,
        past_key: ir.Value,
    ) -> None:
        self._builder, self._pieces = builder, pieces
        self._text, self._structure = spec.text, structure
        inputs = builder.inputs
        self._rows = [inputs[name] for name in ROWS]
        self._blocks, self._window = None, list[ir.Value]()
        if structure.window is not None:
            self._blocks = Blocks.of(structure.window, spec.vision.grid)
            tables = [inputs[name] for name in WINDOW]
            arguments = [inputs["position_ids"], inputs["past_length"], past_key]
            arguments += [inputs["other_rows"], *tables[:2]]
            entry = pieces.window_entry(self._blocks)
            self._window = [*tables, *builder.call(entry, arguments, label="window")]

    def layer(
        self, number: int, arguments: Sequence[ir.Value], names: Mapping[str, str]
    ) -> tuple[ir.Value, ...]:
        """Adds a layer.

        Args:
            number: Which.
            arguments: As a `DecoderLayer` takes them.
            names: Its weights in the graph, by their names in the piece.

        Returns:
            What the piece returns, see `StructuredLayer`.
        """
        text = self._text
        kept = self._structure.kept_heads(number, text.heads)
        constants = [self._builder.constant(values) for values in head_order(kept, text)]
        piece = self.piece(number)
        return self._builder.call(
            piece,
            [*arguments, *self._rows, *constants, *self._window],
            label=f"layers.{number}",
            names=names,
            sources={name: name.replace(LANGUAGE, "") for name in names.values()},
            parts={
                names[weight]: part
                for weight, part in weight_parts(kept, self._structure.ffn_ratio, text).items()
                if weight in names
            },
        )

    def piece(self, number: int) -> Piece:
        """The kind of a layer."""
        ratio = self._structure.ffn_ratio
        return self._pieces.layer(self.kept(number), ratio, self._blocks)

    def scores(
        self, number: int, seen: Sequence[ir.Value], mask: ir.Value, asked: Sequence[ir.Value]
    ) -> tuple[ir.Value, ...]:
        """Adds a scorer over the heads that a layer keeps.

        Args:
            number: The layer.
            seen: What it gave for the scorer.
            mask: The dialect's mask for [kept, key].
            asked: The scorer's own inputs.
        """
        kept = self.kept(number)
        if kept == 0:  # its point's rule asks for none, see `make_plan`
            weights = [asked[0], asked[2]]
            return self._builder.call(self._pieces.no_scores(), weights, label="scorer")
        return self._builder.call(self._pieces.scorer(kept), [*seen, mask, *asked], label="scorer")

    def kept(self, number: int) -> int:
        """Key/value heads that a layer keeps."""
        text = self._text
        heads = self._structure.kept_heads(number, text.heads)
        return len(heads) * text.kv_heads // text.heads


def head_order(kept: Sequence[int], text: TextSpec) -> tuple[list[int], ...]:
    """The values of `HeadOrder`, of the kept query heads."""
    group = text.heads // text.kv_heads
    order = [*kept, *(head for head in range(text.heads) if head not in kept)]
    kv_order = [head // group for head in order[::group]]
    return order, _inverse(order), _inverse(kv_order), kv_order[: len(kept) // group]


def weight_parts(kept: Sequence[int], ratio: int, text: TextSpec) -> dict[str, WeightPart]:
    """Which rows or columns of the checkpoint's tensors a layer's weights are, by their names."""
    order, *_ = head_order(kept, text)
    group, width = text.heads // text.kv_heads, text.head_dim
    heads = order[: len(kept)], order[len(kept) :]
    used = text.intermediate // ratio
    channels = ((0, used),), ((used, text.intermediate),)
    found = {}
    for end, of_heads, of_channels in zip(("", LANGUAGE), heads, channels, strict=True):
        queries = _spans(of_heads, width)
        values = _spans([head // group for head in of_heads[::group]], width)
        for kind in ("weight", "bias"):
            found[f"self_attn.q_proj{end}.{kind}"] = WeightPart(0, queries)
            found[f"self_attn.v_proj{end}.{kind}"] = WeightPart(0, values)
            found[f"mlp.gate_proj{end}.{kind}"] = WeightPart(0, of_channels)
            found[f"mlp.up_proj{end}.{kind}"] = WeightPart(0, of_channels)
        found[f"self_attn.o_proj{end}.weight"] = WeightPart(1, queries)
        found[f"mlp.down_proj{end}.weight"] = WeightPart(1, of_channels)
    return found


def _spans(heads: Sequence[int], width: int) -> tuple[tuple[int, int], ...]:
    return tuple((head * width, (head + 1) * width) for head in heads)


def _inverse(order: Sequence[int]) -> list[int]:
    ranks = [0] * len(order)
    for rank, head in enumerate(order):
        ranks[head] = rank
    return ranks
