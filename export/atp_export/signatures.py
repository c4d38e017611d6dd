"""Inputs and outputs of every stage: the contract between bundle and runtime.

T is the precision's dtype. Axis names are those of `atp_runtime.manifest`.
"""

from __future__ import annotations

from dataclasses import dataclass

from atp_export.plan import DTYPE_NAMES, ExportPlan
from atp_export.vision_plan import VisionPlan
from atp_models.architecture import ModelSpec
from atp_runtime.manifest import TensorSpec
from atp_runtime.structure import MASKED, Structure
from atp_runtime.structure_rows import Blocks
from atp_runtime.tensor_names import (
    IMAGE_FEATURES,
    KEYS,
    MEAN_KEYS,
    MERGE_WEIGHTS,
    PATCH_FEATURES,
    PLACES,
    ROUTE_WEIGHTS,
    ROUTER_SCORES,
    ROW_SCORES,
    ROWS,
    SCORES,
    TEXT_MEAN,
    TOWER_KEPT,
    WINDOW,
    cache_names,
)

FLOAT, INDEX = "float32", "int64"
SCORER_INPUTS = ("visual_weights", "text_rows", "text_weights")


@dataclass(frozen=True)
class Signature:
    """A stage's inputs and outputs, in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def vision_signature(spec: ModelSpec, dtype: str, plan: VisionPlan | None = None) -> Signature:
    """Images [images, 3, height, width] to T [images, tokens, hidden].

    Before a projector that is a stage of its own they come as T [images, tokens, width]; what a
    rule decides by follows.
    """
    vision = spec.vision
    height, width = vision.image_size
    cut = plan is not None and plan.cut
    name = PATCH_FEATURES if cut else IMAGE_FEATURES
    merging = plan.merging if plan is not None else None
    compressing = plan.compressing if plan is not None else None
    inside = merging or compressing
    tokens = vision.tokens if inside is None else inside.most(vision.tokens)
    features = (tokens, vision.feature_width if cut else spec.text.hidden)
    outputs = {name: (dtype, features), **{it: _signal(spec, it) for it in _needs(plan, name)}}
    if merging is not None:
        outputs[TOWER_KEPT] = (INDEX, (sum(merging.keep),))
    inputs = [TensorSpec("pixel_values", FLOAT, ("images", 3, height, width))]
    if compressing is not None or (merging is not None and merging.text):
        inputs.append(TensorSpec(TEXT_MEAN, FLOAT, (1, spec.text.hidden)))
    return Signature(
        tuple(inputs),
        tuple(TensorSpec(it, kind, ("images", *shape)) for it, (kind, shape) in outputs.items()),
    )


def _needs(plan: VisionPlan | None, features: str) -> tuple[str, ...]:
    return tuple(name for name in plan.needs if name != features) if plan else ()


def _signal(spec: ModelSpec, name: str) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of what a rule decides by, for one image."""
    vision = spec.vision
    widths = {KEYS: (vision.hidden,), MEAN_KEYS: (vision.hidden // vision.heads,)}
    return FLOAT, (vision.tokens, *widths.get(name, ()))


def projector_signature(spec: ModelSpec, dtype: str) -> Signature:
    """What is left of an image, T [1, selected, width] to T [1, selected, hidden]."""
    return Signature(
        (TensorSpec(PATCH_FEATURES, dtype, (1, "selected", spec.vision.feature_width)),),
        (TensorSpec(IMAGE_FEATURES, dtype, (1, "selected", spec.text.hidden)),),
    )


def segment_signature(
    spec: ModelSpec,
    dtype: str,
    *,
    first: int,
    last: int,
    scores: tuple[str, ...] = (),
    merging: bool = False,
    routed: bool = False,
    structure: Structure | None = None,
) -> Signature:
    """Layers [first, last), with the scores that a rule decides by, and what a scorer takes.

    If `merging`, it is told what to merge. If `routed`, tokens skip it; it is told how much the
    others get, and all leave it. With a structure that covers them, it is told which rows are
    visual.
    """
    hidden, width = spec.text.hidden, (spec.text.kv_heads, spec.text.head_dim)
    inputs = [
        TensorSpec("hidden_states", dtype, (1, "tokens", hidden)),
        TensorSpec("keep_indices", INDEX, ("kept",)),
        TensorSpec("position_ids", INDEX, (1, "kept")),
        TensorSpec("past_length", INDEX, (1,)),
    ]
    leaving = "tokens" if routed else "kept"
    outputs = [TensorSpec("hidden_states_out", dtype, (1, leaving, hidden))]
    for layer in range(first, last):
        names = cache_names(layer)
        inputs += [TensorSpec(name, dtype, (1, "past", *width)) for name in names[:2]]
        outputs += [TensorSpec(name, dtype, (1, "kept", *width)) for name in names[2:]]
    if merging:
        inputs.append(TensorSpec(MERGE_WEIGHTS, FLOAT, ("merged", "tokens")))
    if routed:
        inputs.append(TensorSpec(ROUTE_WEIGHTS, FLOAT, ("kept",)))
    if structure is not None and structure.covers(first):
        inputs += _row_inputs(spec, structure)
    if SCORES[0] in scores:
        kinds = ((FLOAT, "kept"), (INDEX, "rows"), (FLOAT, "rows"))
        for name, (kind, axis) in zip(SCORER_INPUTS, kinds, strict=True):
            inputs.append(TensorSpec(name, kind, (axis,)))
    shapes = {ROUTER_SCORES: (leaving,), ROW_SCORES: ("rows", "kept")}
    outputs += [TensorSpec(name, FLOAT, shapes.get(name, ("kept",))) for name in scores]
    return Signature(tuple(inputs), tuple(outputs))


def _row_inputs(spec: ModelSpec, structure: Structure) -> list[TensorSpec]:
    if structure.mode == MASKED:
        return [TensorSpec(PLACES, INDEX, ("kept", 3))]
    rows = (("others",), ("kept",))
    shapes: dict[str, tuple[int | str, ...]] = dict(zip(ROWS, rows, strict=True))
    if structure.window is not None:
        blocks = Blocks.of(structure.window, spec.vision.grid)
        tables = (("blocks", blocks.queries), ("blocks", blocks.keys), ("visual",))
        shapes |= dict(zip(WINDOW, tables, strict=True))
    return [TensorSpec(name, INDEX, shape) for name, shape in shapes.items()]


def head_signature(spec: ModelSpec, dtype: str, rows: int) -> Signature:
    """Hidden states T [1, tokens, hidden] to `rows` of the last position's logits."""
    return Signature(
        (TensorSpec("hidden_states", dtype, (1, "tokens", spec.text.hidden)),),
        (TensorSpec("logits", FLOAT, (1, rows)),),
    )


def plan_signatures(plan: ExportPlan) -> dict[str, Signature]:
    """The signatures of all stages of a plan, in the order they run."""
    spec, dtype = plan.spec, DTYPE_NAMES[plan.dtype]
    segments = {
        segment.name: segment_signature(
            spec,
            dtype,
            first=segment.first,
            last=segment.last,
            scores=segment.scores,
            merging=plan.merges_before(segment),
            routed=plan.routed(segment),
            structure=plan.structure,
        )
        for segment in plan.segments
    }
    heads = {head.name: head_signature(spec, dtype, head.rows) for head in plan.heads}
    vision = {"vision": vision_signature(spec, dtype, plan.vision)}
    if plan.vision is not None and plan.vision.cut:
        vision["projector"] = projector_signature(spec, dtype)
    return {**vision, **segments, **heads}
