"""Puts merges between the layers of a tower's graph."""

from __future__ import annotations

import onnx_ir as ir

from atp_export.stage_graph import StageBuilder
from atp_export.tower_pieces import TowerPieces
from atp_export.trace import Piece
from atp_models.architecture import VisionSpec
from atp_runtime.tower_merging import TowerMerge


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

    @property
    def layer(self) -> Piece:
        """The kind of the next layer."""
        return self._pieces.layer(self._length)

    @property
    def leave(self) -> Piece:
        """The kind of feature selection and projector behind the last layer."""
        return self._pieces.exit(self._length)

    def behind(
        self, number: int, label: str, left: ir.Value, query: ir.Value, keys: ir.Value
    ) -> ir.Value:
        """Adds what is merged behind a layer, if anything is.

        Args:
            number: The layer's.
            label: What its nodes' names begin with.
            left: Hidden states that leave it.
            query: Its queries.
            keys: Its keys.

        Returns:
            The hidden states that go on.
        """
        if number not in self._keep:
            return left
        keep, call = self._keep[number], self._builder.call
        received = self._pieces.received(self._length)
        (scores,) = call(received, [query, keys], label=f"{label}.received")
        merge = self._pieces.merge(self._length, keep)
        states, kept = call(merge, [left, scores], label=f"{label}.merge")
        self._kept.append(kept)
        self._length = self._fixed + keep
        return states

    def kept(self) -> ir.Value:
        """What stayed at each merge, one behind the other."""
        return self._builder.concatenate(self._kept, axis=1)
