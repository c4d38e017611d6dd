"""The pieces of one model in one dialect and precision, each traced when it is first needed."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch

from atp_export.graphs.compressor import CompressedExit
from atp_export.graphs.dialects import DIALECTS
from atp_export.graphs.pieces import (
    AttentionScorer,
    DecoderLayer,
    Head,
    SegmentEntry,
    TokenMerge,
)
from atp_export.graphs.routing import RoutedLayer, RouterScorer, SegmentExit
from atp_export.graphs.vision import (
    ClassScorer,
    ClassSimilarity,
    PatchFeatures,
    PatchKeys,
    Projector,
    VisionEntry,
    VisionExit,
    feature_layers,
    vision_layer,
)
from atp_export.structured_pieces import KEY, StructuredPieces
from atp_export.tower_pieces import TowerPieces
from atp_export.trace import Argument, Piece, trace
from atp_models.architecture import ModelSpec

FLOAT, INDEX = torch.float32, torch.int64
LAYER_OUTPUTS = ["hidden_states_out", "key", "value", "query", "keys"]


class TracedPieces:
    """All pieces that stages are composed of."""

    def __init__(self, spec: ModelSpec, *, dialect: str, dtype: torch.dtype) -> None:
        self.spec = spec
        self.text = spec.text
        self.dialect = DIALECTS[dialect]
        self.dtype = dtype
        self._heads: dict[int, Piece] = {}
        self._compressed: dict[int, Piece] = {}

    @cached_property
    def entry(self) -> Piece:
        """`SegmentEntry`."""
        arguments = [
            Argument("hidden_states", (1, "tokens", self.text.hidden), self.dtype),
            Argument("keep_indices", ("kept",), INDEX),
            Argument("position_ids", (1, "kept"), INDEX),
            Argument("past_length", (1,), INDEX),
            self._cache("past_key", "past"),
        ]
        outputs = ["hidden_states_kept", "cos", "sin", "mask"]
        return self._trace(partial(SegmentEntry, self.text, self.dialect), arguments, outputs)

    @cached_property
    def merge(self) -> Piece:
        """`TokenMerge`."""
        arguments = [
            Argument("hidden_states", (1, "tokens", self.text.hidden), self.dtype),
            Argument("merge_weights", ("merged", "tokens"), FLOAT),
        ]
        return self._trace(partial(TokenMerge), arguments, ["pool"])

    @cached_property
    def layer(self) -> Piece:
        """`DecoderLayer`."""
        build = partial(DecoderLayer, self.text, self.dialect)
        return self._trace(build, self._layer_arguments(), LAYER_OUTPUTS)

    @cached_property
    def routed_layer(self) -> Piece:
        """`RoutedLayer`."""
        arguments = [*self._layer_arguments(), Argument("route_weights", ("kept",), FLOAT)]
        build = partial(RoutedLayer, self.text, self.dialect)
        return self._trace(build, arguments, LAYER_OUTPUTS)

    @cached_property
    def exit(self) -> Piece:
        """`SegmentExit`."""
        arguments = [
            Argument("hidden_states", (1, "kept", self.text.hidden), self.dtype),
            Argument("entered", (1, "tokens", self.text.hidden), self.dtype),
            Argument("keep_indices", ("kept",), INDEX),
        ]
        return self._trace(partial(SegmentExit), arguments, ["flow"])

    @cached_property
    def router(self) -> Piece:
        """`RouterScorer`."""
        hidden = Argument("hidden_states", (1, "tokens", self.text.hidden), self.dtype)
        return self._trace(partial(RouterScorer, self.text.hidden), [hidden], ["scores"])

    @cached_property
    def scorer(self) -> Piece:
        """`AttentionScorer`."""
        query_shape = (1, "kept", self.text.heads, self.text.head_dim)
        arguments = [
            Argument("query", query_shape, self.dtype),
            self._cache("key", "kept"),
            self._cache("keys", KEY),
            Argument("mask", ("kept", KEY), self.dialect.mask_dtype),
            Argument("visual_weights", ("kept",), FLOAT),
            Argument("text_rows", ("rows",), INDEX),
            Argument("text_weights", ("rows",), FLOAT),
        ]
        return self._trace(
            partial(AttentionScorer, self.dialect), arguments, ["self", "cross", "rows"]
        )

    @cached_property
    def structured(self) -> StructuredPieces:
        """What segments have besides where visual tokens are spared work."""
        return StructuredPieces(self.text, self.dialect, self.dtype)

    @cached_property
    def tower(self) -> TowerPieces:
        """What towers have besides where patches are merged."""
        return TowerPieces(self.spec, self.dialect, self.dtype)

    def head(self, rows: int) -> Piece:
        """`Head` over that many rows of the vocabulary."""
        if rows not in self._heads:
            arguments = [Argument("hidden_states", (1, "tokens", self.text.hidden), self.dtype)]
            build = partial(Head, self.text, rows, self.dialect)
            self._heads[rows] = self._trace(build, arguments, ["logits"])
        return self._heads[rows]

    @cached_property
    def vision_entry(self) -> Piece:
        """`VisionEntry`."""
        pixels = Argument("pixel_values", ("images", 3, *self.spec.vision.image_size), FLOAT)
        build = partial(VisionEntry, self.spec, self.dialect, self.dtype)
        return self._trace(build, [pixels], ["hidden_states"])

    @cached_property
    def vision_layer(self) -> Piece:
        """`vision_layer`."""
        build = partial(vision_layer, self.spec, self.dialect)
        outputs = ["hidden_states_out", "query", "keys"]
        return self._trace(build, [self._patches("hidden_states")], outputs)

    @cached_property
    def class_scorer(self) -> Piece:
        """`ClassScorer`."""
        _, query, keys = self.vision_layer.function.outputs
        arguments = [self._alike("query", query), self._alike("keys", keys)]
        return self._trace(partial(ClassScorer, self.spec), arguments, ["scores"])

    @cached_property
    def keys(self) -> Piece:
        """`PatchKeys`, heads side by side."""
        return self._keys(mean=False)

    @cached_property
    def mean_keys(self) -> Piece:
        """`PatchKeys`, heads averaged."""
        return self._keys(mean=True)

    @cached_property
    def class_similarity(self) -> Piece:
        """`ClassSimilarity`."""
        return self._trace(partial(ClassSimilarity), self._chosen_states(), ["similarity"])

    @cached_property
    def patch_features(self) -> Piece:
        """`PatchFeatures`."""
        build = partial(PatchFeatures, self.spec)
        return self._trace(build, self._chosen_states(), ["patch_features"])

    @cached_property
    def projector(self) -> Piece:
        """`Projector`."""
        width = self.spec.vision.feature_width
        features = Argument("patch_features", (1, "selected", width), self.dtype)
        return self._trace(partial(Projector, self.spec), [features], ["image_features"])

    @cached_property
    def vision_exit(self) -> Piece:
        """`VisionExit`."""
        build = partial(VisionExit, self.spec)
        return self._trace(build, self._chosen_states(), ["image_features"])

    def compressed_exit(self, grid: int) -> Piece:
        """`CompressedExit` to that many cells along each side."""
        if grid not in self._compressed:
            text = Argument("text_mean", (1, self.text.hidden), FLOAT)
            build = partial(CompressedExit, self.spec, self.dialect, grid)
            arguments = [text, *self._chosen_states()]
            self._compressed[grid] = self._trace(build, arguments, ["image_features"])
        return self._compressed[grid]

    def _trace(self, build: partial[Any], arguments: list[Argument], outputs: list[str]) -> Piece:
        name, opset = build.func.__name__, self.dialect.opset
        return trace(name, build, arguments, outputs, dtype=self.dtype, opset=opset)

    def _layer_arguments(self) -> list[Argument]:
        half = self.text.head_dim // 2
        return [
            Argument("hidden_states", (1, "kept", self.text.hidden), self.dtype),
            Argument("cos", (1, "kept", half), FLOAT),
            Argument("sin", (1, "kept", half), FLOAT),
            Argument("mask", ("kept", KEY), self.dialect.mask_dtype),
            self._cache("past_key", "past"),
            self._cache("past_value", "past"),
        ]

    def _cache(self, name: str, axis: str) -> Argument:
        return Argument(name, (1, axis, self.text.kv_heads, self.text.head_dim), self.dtype)

    def _keys(self, *, mean: bool) -> Piece:
        argument = self._alike("keys", self.vision_layer.function.outputs[2])
        return self._trace(partial(PatchKeys, self.spec, mean=mean), [argument], ["patch_keys"])

    def _chosen_states(self) -> list[Argument]:
        return [self._patches(f"state_{number}") for number in feature_layers(self.spec)]

    def _alike(self, name: str, value: Any) -> Argument:
        return Argument(name, ("images", *value.shape[1:]), self.dtype)

    def _patches(self, name: str) -> Argument:
        # How many patches there are, class token included, only the tower knows.
        patches, width = self.vision_entry.function.outputs[0].shape[1:]
        return Argument(name, ("images", patches, width), self.dtype)
