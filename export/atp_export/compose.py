"""From traced pieces to the stages of the bundle's contract.

A layer is traced once and called once per layer of a segment; inlining turns the calls into
one flat graph. So the time to trace does not grow with the model's depth.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import onnx_ir as ir
import torch

from atp_export.graphs.dialects import DIALECTS
from atp_export.graphs.pieces import AttentionScorer, DecoderLayer, Head, SegmentEntry
from atp_export.graphs.vision import (
    VisionEntry,
    VisionExit,
    feature_layers,
    layer_prefix,
    vision_layer,
)
from atp_export.plan import DTYPE_NAMES
from atp_export.signatures import head_signature, segment_signature, vision_signature
from atp_export.stage_graph import StageBuilder, StageGraph
from atp_export.trace import Argument, Piece, trace
from atp_models.architecture import ModelSpec
from atp_models.text_spec import EMBEDDING, HEAD
from atp_runtime.manifest import cache_names

FLOAT, INDEX = torch.float32, torch.int64


class StageComposer:
    """Makes the stages of one model in one dialect and precision; traces each piece once."""

    def __init__(self, spec: ModelSpec, *, dialect: str, dtype: torch.dtype) -> None:
        self.spec = spec
        self.text = spec.text
        self.dialect = DIALECTS[dialect]
        self.dtype = dtype
        self._dtype_name = DTYPE_NAMES[dtype]

    @cached_property
    def _entry(self) -> Piece:
        text = self.text
        arguments = [
            Argument("hidden_states", (1, "tokens", text.hidden), self.dtype),
            Argument("keep_indices", ("kept",), INDEX),
            Argument("position_ids", (1, "kept"), INDEX),
            Argument("past_key", self._cache_shape("past"), self.dtype),
        ]
        outputs = ["hidden_states_kept", "cos", "sin", "mask"]
        return self._trace(partial(SegmentEntry, text, self.dialect), arguments, outputs)

    @cached_property
    def _layer(self) -> Piece:
        half = self.text.head_dim // 2
        arguments = [
            Argument("hidden_states", (1, "kept", self.text.hidden), self.dtype),
            Argument("cos", (1, "kept", half), FLOAT),
            Argument("sin", (1, "kept", half), FLOAT),
            Argument("mask", ("kept", "key"), self.dialect.mask_dtype),
            Argument("past_key", self._cache_shape("past"), self.dtype),
            Argument("past_value", self._cache_shape("past"), self.dtype),
        ]
        outputs = ["hidden_states_out", "key", "value", "query", "keys"]
        return self._trace(partial(DecoderLayer, self.text, self.dialect), arguments, outputs)

    @cached_property
    def _scorer(self) -> Piece:
        query_shape = (1, "kept", self.text.heads, self.text.head_dim)
        arguments = [
            Argument("query", query_shape, self.dtype),
            Argument("key", self._cache_shape("kept"), self.dtype),
            Argument("keys", self._cache_shape("key"), self.dtype),
            Argument("mask", ("kept", "key"), self.dialect.mask_dtype),
            Argument("visual_weights", ("kept",), FLOAT),
            Argument("text_rows", ("rows",), INDEX),
            Argument("text_weights", ("rows",), FLOAT),
        ]
        build = partial(AttentionScorer, self.dialect)
        return self._trace(build, arguments, ["self", "cross"])

    def _trace(self, build: partial[Any], arguments: list[Argument], outputs: list[str]) -> Piece:
        name, opset = build.func.__name__, self.dialect.opset
        return trace(name, build, arguments, outputs, dtype=self.dtype, opset=opset)

    def _cache_shape(self, axis: str) -> tuple[int | str, ...]:
        return (1, axis, self.text.kv_heads, self.text.head_dim)

    def vision(self) -> StageGraph:
        """Vision tower up to the last layer whose features are used, selection, projector."""
        signature = vision_signature(self.spec, self._dtype_name)
        (pixels,) = signature.inputs
        build = partial(VisionEntry, self.spec, self.dialect, self.dtype)
        entry = self._trace(build, [Argument(pixels.name, pixels.shape, FLOAT)], ["embedded"])
        patches = ("images", *entry.function.outputs[0].shape[1:])
        chosen = feature_layers(self.spec)
        arguments = [Argument("hidden_states", patches, self.dtype)]
        layer = self._trace(partial(vision_layer, self.spec, self.dialect), arguments, ["out"])
        arguments = [Argument(f"state_{number}", patches, self.dtype) for number in chosen]
        leave = self._trace(partial(VisionExit, self.spec), arguments, ["image_features"])

        builder = StageBuilder("vision", signature, opset=self.dialect.opset)
        (hidden,) = builder.call(
            entry, [builder.inputs[pixels.name]], label="", names=_below("model.", entry)
        )
        states = [hidden]
        for number in range(max(chosen)):
            prefix = layer_prefix(self.spec, number)
            label = prefix.removeprefix("model.").rstrip(".")
            (hidden,) = builder.call(layer, [hidden], label=label, names=_below(prefix, layer))
            states.append(hidden)
        used = [states[number] for number in chosen]
        (features,) = builder.call(leave, used, label="", names=_below("model.", leave))
        return builder.finish({"image_features": features})

    def head(self) -> StageGraph:
        """Final norm and LM head on the last position."""
        signature = head_signature(self.spec, self._dtype_name)
        (states,) = signature.inputs
        arguments = [Argument(states.name, states.shape, self.dtype)]
        piece = self._trace(partial(Head, self.text, self.dialect), arguments, ["logits"])
        sources = {
            "norm.weight": "model.language_model.norm.weight",
            "lm_head.weight": EMBEDDING if self.text.tied_embeddings else HEAD,
        }
        builder = StageBuilder("head", signature, opset=self.dialect.opset)
        inputs = [builder.inputs["hidden_states"]]
        (logits,) = builder.call(piece, inputs, label="", sources=sources)
        return builder.finish({"logits": logits})

    def segment(self, name: str, first: int, last: int, *, scored: bool) -> StageGraph:
        """Layers [first, last), with the scorer's inputs and outputs if `scored`."""
        signature = segment_signature(
            self.spec, self._dtype_name, first=first, last=last, scored=scored
        )
        builder = StageBuilder(name, signature, opset=self.dialect.opset)
        inputs = builder.inputs
        outputs: dict[str, ir.Value] = {}
        # The length of the past is taken from the first layer's keys.
        names = ("hidden_states", "keep_indices", "position_ids", cache_names(first)[0])
        entry = [inputs[entered] for entered in names]
        hidden, cos, sin, mask = builder.call(
            self._entry, entry, label="entry", names=_below("rope.", self._entry)
        )
        for layer in range(first, last):
            past_key, past_value, new_key, new_value = cache_names(layer)
            hidden, key, value, query, keys = builder.call(
                self._layer,
                [hidden, cos, sin, mask, inputs[past_key], inputs[past_value]],
                label=f"layers.{layer}",
                names=_below(f"model.language_model.layers.{layer}.", self._layer),
            )
            outputs |= {new_key: key, new_value: value}
        if scored:
            weights = [inputs[name] for name in ("visual_weights", "text_rows", "text_weights")]
            arguments = [query, key, keys, mask, *weights]
            scores = builder.call(self._scorer, arguments, label="scorer")
            outputs |= dict(zip(("scores.self", "scores.cross"), scores, strict=True))
        return builder.finish({"hidden_states_out": hidden, **outputs})


def _below(prefix: str, piece: Piece) -> dict[str, str]:
    """Names of a piece's weights with a prefix, by their names without."""
    return {weight.name: prefix + weight.name for weight in piece.weights}
