"""Pieces of segments that spare visual tokens work, each traced when it is first needed.

Layers differ in how many heads they keep; which, they are told. So there are as many kinds as there
are counts.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from atp_export.graphs.dialects import Dialect
from atp_export.graphs.masked import MaskedEntry, MaskedLayer
from atp_export.graphs.pieces import AttentionScorer
from atp_export.graphs.structured import NoScores, StructuredLayer
from atp_export.graphs.windows import WindowEntry
from atp_export.trace import Argument, Piece, trace
from atp_models.architecture import TextSpec
from atp_runtime.structure_rows import Blocks

_SCORES = ["self", "cross", "rows"]

FLOAT, INDEX = torch.float32, torch.int64
KEY = "past + kept"


class StructuredPieces:
    """All pieces that structured segments have besides the usual ones."""

    def __init__(self, text: TextSpec, dialect: Dialect, dtype: torch.dtype) -> None:
        self._text = text
        self._dialect = dialect
        self._dtype = dtype
        self.window_entry = cache(self._window_entry)
        self.layer = cache(self._layer)
        self.scorer = cache(self._scorer)
        self.no_scores = cache(self._no_scores)
        self.masked_entry = cache(self._masked_entry)
        self.masked_layer = cache(self._masked_layer)

    def _window_entry(self, blocks: Blocks) -> Piece:
        arguments = [
            Argument("position_ids", (1, "kept"), INDEX),
            Argument("past_length", (1,), INDEX),
            self._cache("past_key", "past"),
            Argument("other_rows", ("others",), INDEX),
            Argument("window_queries", ("blocks", blocks.queries), INDEX),
            Argument("window_keys", ("blocks", blocks.keys), INDEX),
        ]
        build = partial(WindowEntry, self._dialect, blocks)
        return self._trace("WindowEntry", build, arguments, ["window_mask"])

    def _layer(self, kept: int, ratio: int, blocks: Blocks | None) -> Piece:
        text = self._text
        arguments = [
            *self._layer_arguments(),
            Argument("other_rows", ("others",), INDEX),
            Argument("row_slots", ("kept",), INDEX),
            Argument("head_order", (text.heads,), INDEX),
            Argument("head_ranks", (text.heads,), INDEX),
            Argument("kv_ranks", (text.kv_heads,), INDEX),
            Argument("kv_kept", (kept,), INDEX),
        ]
        if blocks is not None:
            seen = f"past + others + {blocks.keys}"
            arguments += [
                Argument("window_queries", ("blocks", blocks.queries), INDEX),
                Argument("window_keys", ("blocks", blocks.keys), INDEX),
                Argument("window_cells", ("visual",), INDEX),
                Argument("window_mask", ("blocks", blocks.queries, seen), self._dialect.mask_dtype),
            ]
        outputs = ["hidden_states_out", "key", "value"]
        outputs += ["query", "scored_key", "scored_keys"] if kept else []
        build = partial(StructuredLayer, text, self._dialect, kept, ratio)
        return self._trace(f"StructuredLayer_{kept}", build, arguments, outputs)

    def _masked_entry(self, window: int | None) -> Piece:
        arguments = [
            Argument("position_ids", (1, "kept"), INDEX),
            Argument("past_length", (1,), INDEX),
            self._cache("past_key", "past"),
            Argument("visual_places", ("kept", 3), INDEX),
        ]
        build = partial(MaskedEntry, self._dialect, window)
        return self._trace("MaskedEntry", build, arguments, ["mask"])

    def _masked_layer(self, ratio: int) -> Piece:
        text = self._text
        arguments = [
            *self._layer_arguments(),
            Argument("visual_places", ("kept", 3), INDEX),
            Argument("heads_given", (text.heads,), INDEX),
            Argument("heads_counted", (text.kv_heads,), INDEX),
        ]
        build = partial(MaskedLayer, text, self._dialect, ratio)
        outputs = ["hidden_states_out", "key", "value"]
        return self._trace("MaskedLayer", build, arguments, outputs)

    def _layer_arguments(self) -> list[Argument]:
        """What every layer takes."""
        half = self._text.head_dim // 2
        return [
            Argument("hidden_states", (1, "kept", self._text.hidden), self._dtype),
            Argument("cos", (1, "kept", half), FLOAT),
            Argument("sin", (1, "kept", half), FLOAT),
            Argument("mask", ("kept", KEY), self._dialect.mask_dtype),
            self._cache("past_key", "past"),
            self._cache("past_value", "past"),
        ]

    def _scorer(self, kept: int) -> Piece:
        """`AttentionScorer` over the kept heads."""
        text = self._text
        heads = kept * (text.heads // text.kv_heads)
        arguments = [
            Argument("query", (1, "kept", heads, text.head_dim), self._dtype),
            Argument("key", (1, "kept", kept, text.head_dim), self._dtype),
            Argument("keys", (1, KEY, kept, text.head_dim), self._dtype),
            Argument("mask", ("kept", KEY), self._dialect.mask_dtype),
            Argument("visual_weights", ("kept",), FLOAT),
            Argument("text_rows", ("rows",), INDEX),
            Argument("text_weights", ("rows",), FLOAT),
        ]
        build = partial(AttentionScorer, self._dialect)
        return self._trace(f"AttentionScorer_{kept}", build, arguments, _SCORES)

    def _no_scores(self) -> Piece:
        arguments = [
            Argument("visual_weights", ("kept",), FLOAT),
            Argument("text_weights", ("rows",), FLOAT),
        ]
        return self._trace("NoScores", partial(NoScores), arguments, _SCORES)

    def _cache(self, name: str, axis: str) -> Argument:
        shape = (1, axis, self._text.kv_heads, self._text.head_dim)
        return Argument(name, shape, self._dtype)

    def _trace(
        self,
        name: str,
        build: partial[Any],
        arguments: list[Argument],
        outputs: list[str],
    ) -> Piece:
        opset = self._dialect.opset
        return trace(name, build, arguments, outputs, dtype=self._dtype, opset=opset)
