"""From traced pieces to the stages of the bundle's contract.

A layer is traced once and called once per layer of a segment; inlining turns the calls into
one flat graph. So the time to trace does not grow with the model's depth.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from atp_export.graphs.dialects import DIALECTS
from atp_export.graphs.vision import feature_layers, layer_prefix
from atp_export.masked_segment import MaskedSegment
from atp_export.merging_tower import MergingTower
from atp_export.plan import DTYPE_NAMES, HeadPlan
from atp_export.signatures import (
    SCORER_INPUTS,
    head_signature,
    projector_signature,
    segment_signature,
    vision_signature,
)
from atp_export.stage_graph import StageBuilder, StageGraph
from atp_export.structured_segment import StructuredSegment
from atp_export.trace import Piece
from atp_export.traced_pieces import TracedPieces
from atp_export.vision_plan import VisionPlan
from atp_models.architecture import ModelSpec
from atp_models.routers import router_name
from atp_models.text_spec import EMBEDDING, HEAD
from atp_runtime.structure import MASKED, Structure
from atp_runtime.tensor_names import (
    CLASS_ATTENTION,
    CLASS_SIMILARITY,
    IMAGE_FEATURES,
    KEYS,
    MEAN_KEYS,
    MERGE_WEIGHTS,
    PATCH_FEATURES,
    ROUTE_WEIGHTS,
    ROUTER_SCORES,
    ROW_SCORES,
    SCORES,
    TEXT_MEAN,
    TOWER_KEPT,
    cache_names,
)


class StageComposer:
    """Makes the stages of one model in one dialect and precision."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        dialect: str,
        dtype: torch.dtype,
        structure: Structure | None = None,
    ) -> None:
        self.spec = spec
        self._structure = structure
        self._opset = DIALECTS[dialect].opset
        self._dtype = DTYPE_NAMES[dtype]
        self._pieces = TracedPieces(spec, dialect=dialect, dtype=dtype)

    def vision(self, plan: VisionPlan | None = None) -> StageGraph:
        """Vision tower up to the last layer whose features are used, selection, projector.

        Args:
            plan: What a rule behind the tower wants, and whether it comes before the projector.
        """
        signature = vision_signature(self.spec, self._dtype, plan)
        builder = StageBuilder("vision", signature, opset=self._opset)
        entry, layer = self._pieces.vision_entry, self._pieces.vision_layer
        pixels = builder.inputs["pixel_values"]
        states = list(builder.call(entry, [pixels], label="", names=_below("model.", entry)))
        chosen, attended = feature_layers(self.spec), []
        merging = self._merging(builder, plan)
        for number in range(max(chosen)):
            prefix = layer_prefix(self.spec, number)
            piece = merging.layer if merging else layer
            label, names = prefix.removeprefix("model.").rstrip("."), _below(prefix, piece)
            left, query, keys = builder.call(piece, [states[-1]], label=label, names=names)
            attended.append((query, keys))
            if merging is not None:
                left = merging.behind(number, prefix, states[-1], left, attended[-1])
            states.append(left)
        used = [states[number] for number in chosen]
        if merging is not None:
            names = _below("model.", merging.leave)
            (features,) = builder.call(merging.leave, used, label="", names=names)
            return builder.finish({IMAGE_FEATURES: features, TOWER_KEPT: merging.kept()})
        outputs = self._vision_features(builder, used, plan)
        if plan is not None:
            outputs |= self._decided_by(builder, plan, used, attended)
        return builder.finish(outputs)

    def _merging(self, builder: StageBuilder, plan: VisionPlan | None) -> MergingTower | None:
        if plan is None or plan.merging is None:
            return None
        return MergingTower(builder, self._pieces.tower, self.spec.vision, plan.merging)

    def _decided_by(
        self,
        builder: StageBuilder,
        plan: VisionPlan,
        used: list[ir.Value],
        attended: list[tuple[ir.Value, ir.Value]],
    ) -> dict[str, ir.Value]:
        """What the rule behind the tower needs besides the features."""
        pieces, found = self._pieces, {}
        for name in plan.needs:
            if name == CLASS_SIMILARITY:
                (found[name],) = builder.call(pieces.class_similarity, used, label=name)
            elif name == CLASS_ATTENTION:
                (found[name],) = builder.call(pieces.class_scorer, attended[plan.layer], label=name)
            elif name in (KEYS, MEAN_KEYS):
                piece = pieces.keys if name == KEYS else pieces.mean_keys
                (found[name],) = builder.call(piece, attended[plan.layer][1:], label=name)
        return found

    def _vision_features(
        self, builder: StageBuilder, used: list[ir.Value], plan: VisionPlan | None
    ) -> dict[str, ir.Value]:
        if plan is not None and plan.compressing is not None:
            leave = self._pieces.compressed_exit(plan.compressing.grid)
            told, names = [builder.inputs[TEXT_MEAN], *used], _below("model.", leave)
            (features,) = builder.call(leave, told, label="", names=names)
            return {IMAGE_FEATURES: features}
        if plan is not None and plan.cut:
            (features,) = builder.call(self._pieces.patch_features, used, label="")
            return {PATCH_FEATURES: features}
        leave = self._pieces.vision_exit
        (features,) = builder.call(leave, used, label="", names=_below("model.", leave))
        return {IMAGE_FEATURES: features}

    def projector(self) -> StageGraph:
        """The projector alone."""
        signature = projector_signature(self.spec, self._dtype)
        builder = StageBuilder("projector", signature, opset=self._opset)
        piece, inputs = self._pieces.projector, [builder.inputs[PATCH_FEATURES]]
        (features,) = builder.call(piece, inputs, label="", names=_below("model.", piece))
        return builder.finish({IMAGE_FEATURES: features})

    def segment(
        self,
        name: str,
        first: int,
        last: int,
        *,
        scores: tuple[str, ...] = (),
        merging: bool = False,
        routed: bool = False,
    ) -> StageGraph:
        """Layers [first, last), with the scores that a rule decides by, and what a scorer takes.

        If `merging`, tokens may be merged at its entry. If `routed`, it is one layer that tokens
        skip.
        """
        signature = segment_signature(
            self.spec,
            self._dtype,
            first=first,
            last=last,
            scores=scores,
            merging=merging,
            routed=routed,
            structure=self._structure,
        )
        builder = StageBuilder(name, signature, opset=self._opset)
        inputs, outputs = builder.inputs, dict[str, ir.Value]()
        hidden, cos, sin, mask = self._entered(builder, first, merging=merging)
        structured = self._structured(builder, first)
        for layer in range(first, last):
            past_key, past_value, new_key, new_value = cache_names(layer)
            arguments = [hidden, cos, sin, mask, inputs[past_key], inputs[past_value]]
            if routed:
                arguments.append(inputs[ROUTE_WEIGHTS])
            hidden, key, value, *seen = self._layer(
                builder, layer, arguments, structured, routed=routed
            )
            outputs |= {new_key: key, new_value: value}
        if SCORES[0] in scores:
            asked = [inputs[name] for name in SCORER_INPUTS]
            if isinstance(structured, StructuredSegment):
                found = structured.scores(last - 1, seen, mask, asked)
            else:
                found = builder.call(self._pieces.scorer, [*seen, mask, *asked], label="scorer")
            given = zip((*SCORES, ROW_SCORES), found, strict=True)
            outputs |= {name: score for name, score in given if name in scores}
        if routed:
            back = [hidden, inputs["hidden_states"], inputs["keep_indices"]]
            (hidden,) = builder.call(self._pieces.exit, back, label="exit")
        if ROUTER_SCORES in scores:
            router, names = self._pieces.router, {"weight": router_name(last)}
            (outputs[ROUTER_SCORES],) = builder.call(router, [hidden], label="router", names=names)
        return builder.finish({"hidden_states_out": hidden, **outputs})

    def _entered(self, builder: StageBuilder, first: int, *, merging: bool) -> tuple[ir.Value, ...]:
        """Hidden states that go on, cos and sin, and the mask."""
        inputs, entry = builder.inputs, self._pieces.entry
        pool = inputs["hidden_states"]
        if merging:
            (pool,) = builder.call(self._pieces.merge, [pool, inputs[MERGE_WEIGHTS]], label="merge")
        # How long the past is made is taken from the first layer's keys.
        past = ("past_length", cache_names(first)[0])
        taken = [inputs[name] for name in ("keep_indices", "position_ids", *past)]
        return builder.call(entry, [pool, *taken], label="entry", names=_below("rope.", entry))

    def _structured(
        self, builder: StageBuilder, first: int
    ) -> StructuredSegment | MaskedSegment | None:
        structure = self._structure
        if structure is None or not structure.covers(first):
            return None
        past_key = builder.inputs[cache_names(first)[0]]
        pieces = self._pieces.structured
        if structure.mode == MASKED:
            return MaskedSegment(builder, pieces, self.spec.text, structure, past_key)
        return StructuredSegment(builder, pieces, self.spec, structure, past_key)

    def _layer(
        self,
        builder: StageBuilder,
        layer: int,
        arguments: list[ir.Value],
        structured: StructuredSegment | MaskedSegment | None,
        *,
        routed: bool,
    ) -> tuple[ir.Value, ...]:
        """Hidden states, new keys and values, and what a scorer takes: query, key, keys."""
        prefix = f"model.language_model.layers.{layer}."
        if structured is not None:
            return structured.layer(layer, arguments, _below(prefix, structured.piece(layer)))
        piece = self._pieces.routed_layer if routed else self._pieces.layer
        names = _below(prefix, piece)
        hidden, key, value, query, keys = builder.call(
            piece, arguments, label=f"layers.{layer}", names=names
        )
        return hidden, key, value, query, key, keys

    def head(self, plan: HeadPlan) -> StageGraph:
        """Final norm and LM head on the last position."""
        signature = head_signature(self.spec, self._dtype, plan.rows)
        builder = StageBuilder(plan.name, signature, opset=self._opset)
        sources = {
            "norm.weight": "model.language_model.norm.weight",
            "lm_head.weight": EMBEDDING if self.spec.text.tied_embeddings else HEAD,
        }
        inputs = [builder.inputs["hidden_states"]]
        (logits,) = builder.call(
            self._pieces.head(plan.rows),
            inputs,
            label="",
            sources=sources,
            first_rows={"lm_head.weight": plan.first},
        )
        return builder.finish({"logits": logits})


def _below(prefix: str, piece: Piece) -> dict[str, str]:
    """Names of a piece's weights with a prefix, by their names without."""
    return {weight.name: prefix + weight.name for weight in piece.weights}
