"""Pieces of a tower that merges patches: what comes behind a merge is shorter.

A tower's sequence has a fixed length, so each length has a layer of its own.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from atp_export.graphs.dialects import Dialect
from atp_export.graphs.tower_merging import CarriedText, PatchMerge, ReceivedScorer, TextQuery
from atp_export.graphs.vision import ClassScorer, VisionExit, feature_layers, vision_layer
from atp_export.trace import Argument, Piece, trace
from atp_models.architecture import ModelSpec


class TowerPieces:
    """All pieces that a tower has behind a merge, and those that merge.

    Lengths are of the sequence, with a class token if the tower has one.
    """

    def __init__(self, spec: ModelSpec, dialect: Dialect, dtype: torch.dtype) -> None:
        self._spec = spec
        self._dialect = dialect
        self._dtype = dtype
        self._width = spec.vision.hidden
        self.layer = cache(self._layer)
        self.received = cache(self._received)
        self.asked = cache(self._asked)
        self.text_query = cache(self._text_query)
        self.carried_text = cache(self._carried_text)
        self.merge = cache(self._merge)
        self.exit = cache(self._exit)

    def _layer(self, length: int) -> Piece:
        outputs = ["hidden_states_out", "query", "keys"]
        build = partial(vision_layer, self._spec, self._dialect)
        return self._trace(
            f"layer_{length}", build, [self._states("hidden_states", length)], outputs
        )

    def _received(self, length: int) -> Piece:
        vision = self._spec.vision
        arguments = [self._states(name, length) for name in ("query", "keys")]
        build = partial(ReceivedScorer, vision.heads, vision.fixed_positions)
        return self._trace(f"received_{length}", build, arguments, ["scores"])

    def _asked(self, length: int, asking: int) -> Piece:
        arguments = [self._states("query", asking), self._states("keys", length)]
        build = partial(ClassScorer, self._spec)
        return self._trace(f"asked_{length}_{asking}", build, arguments, ["scores"])

    def _text_query(self, length: int, text: float) -> Piece:
        carried = Argument("carried", (1, self._width), torch.float32)
        arguments = [self._states("hidden_states", length), carried]

        def build() -> TextQuery:
            return TextQuery(vision_layer(self._spec, self._dialect), text)

        return self._trace(f"text_query_{length}", partial(build), arguments, ["query"])

    def _carried_text(self) -> Piece:
        text = Argument("text_mean", (1, self._spec.text.hidden), torch.float32)
        return self._trace("carried_text", partial(CarriedText, self._spec), [text], ["carried"])

    def _merge(self, length: int, keep: int) -> Piece:
        fixed = self._spec.vision.fixed_positions
        scores = Argument("scores", ("images", length - fixed), torch.float32)
        arguments = [self._states("hidden_states", length), scores]
        build = partial(PatchMerge, keep, fixed)
        outputs = ["hidden_states_left", "kept"]
        return self._trace(f"merge_{length}_{keep}", build, arguments, outputs)

    def _exit(self, length: int) -> Piece:
        states = [self._states(f"state_{it}", length) for it in feature_layers(self._spec)]
        build = partial(VisionExit, self._spec)
        return self._trace(f"exit_{length}", build, states, ["image_features"])

    def _states(self, name: str, length: int) -> Argument:
        return Argument(name, ("images", length, self._width), self._dtype)

    def _trace(
        self, name: str, build: partial[Any], arguments: list[Argument], outputs: list[str]
    ) -> Piece:
        opset = self._dialect.opset
        return trace(name, build, arguments, outputs, dtype=self._dtype, opset=opset)
