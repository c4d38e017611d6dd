"""Puts merges between the layers of a tower's graph."""

from __future__ import annotations

import onnx_ir as ir

from atp_export.stage_graph import StageBuilder
from atp_export.tower_pieces import TowerPieces
from atp_export.trace import Piece
from atp_models.architecture import VisionSpec
from atp_runtime.tensor_names import TEXT_MEAN
from atp_runtime.tower_merging import RECEIVED, TowerMerge

_QUESTION = "question"  # what is computed of it, by copies of weights


class MergingTower:
    """The merges of one vision stage.

    Args:
        builder: Of its graph.
        pieces: To compose of.
        vision: The tower.
        plan: Where patches are merged.
    """

    def __init__(
        self, builder: StageBuilder, pieces: TowerPieces, vision: VisionSpec, plan: TowerMerge
    ) -> None:
        self._builder, self._pieces = builder, pieces
        self._keep = dict(zip(plan.layers, plan.keep, strict=True))
        self._fixed = vision.fixed_positions
        self._length = self._fixed + vision.mergeable_patches
        self._kept: list[ir.Value] = []
        self._plan = plan
        self._carried = self._carry() if plan.text else None

    def _carry(self) -> ir.Value:
        piece = self._pieces.carried_text()
        names = {weight.name: f"{_QUESTION}.{weight.name}" for weight in piece.weights}
        sources = {name: f"model.multi_modal_projector.{it}" for it, name in names.items()}
        text = [self._builder.inputs[TEXT_MEAN]]
        (carried,) = self._builder.call(piece, text, label=_QUESTION, names=names, sources=sources)
        return carried

    @property
    def layer(self) -> Piece:
        """The kind of the next layer."""
        return self._pieces.layer(self._length)

    @property
    def leave(self) -> Piece:
        """The kind of feature selection and projector behind the last layer."""
        return self._pieces.exit(self._length)

    def behind(
        self,
        number: int,
        prefix: str,
        entered: ir.Value,
        left: ir.Value,
        attended: tuple[ir.Value, ir.Value],
    ) -> ir.Value:
        """Adds what is merged behind a layer, if anything is.

        Args:
            number: The layer's.
            prefix: What the checkpoint's names of its parameters begin with.
            entered: Hidden states that enter it.
            left: Hidden states that leave it.
            attended: Its queries and keys.

        Returns:
            The hidden states that go on.
        """
        if number not in self._keep:
            return left
        keep, label = self._keep[number], prefix.removeprefix("model.")
        scores = self._scores(prefix, label, entered, attended)
        merge = self._pieces.merge(self._length, keep)
        states, kept = self._builder.call(merge, [left, scores], label=f"{label}merge")
        self._kept.append(kept)
        self._length = self._fixed + keep
        return states

    def _scores(
        self, prefix: str, label: str, entered: ir.Value, attended: tuple[ir.Value, ir.Value]
    ) -> ir.Value:
        query, keys = attended
        if self._plan.score == RECEIVED:
            received = self._pieces.received(self._length)
            (scores,) = self._builder.call(received, [query, keys], label=f"{label}received")
            return scores
        asking = self._length
        if self._carried is not None:
            piece, asking = self._pieces.text_query(self._length, self._plan.text), 1
            # Copies, as a weight of a graph is read in one place.
            names = {it.name: f"{_QUESTION}.{prefix}{it.name}" for it in piece.weights}
            sources = {name: prefix + it.removeprefix("layer.") for it, name in names.items()}
            (query,) = self._builder.call(
                piece,
                [entered, self._carried],
                label=f"{_QUESTION}.{label}asking",
                names=names,
                sources=sources,
            )
        asked = self._pieces.asked(self._length, asking)
        (scores,) = self._builder.call(asked, [query, keys], label=f"{label}asked")
        return scores

    def kept(self) -> ir.Value:
        """What stayed at each merge, one behind the other."""
        return self._builder.concatenate(self._kept, axis=1)
