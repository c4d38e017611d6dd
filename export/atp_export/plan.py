"""What will be exported: stages, cut points, precision, axes. Nothing is traced or read here.

Read this file first: everything the exporter does follows an `ExportPlan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch

from atp_export.vision_plan import VisionPlan
from atp_models.architecture import ModelSpec, TextSpec
from atp_models.pruning_config import check_layers
from atp_models.structure import check_structure
from atp_runtime.errors import InputError
from atp_runtime.manifest import AxisRange
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.structure import FAST, Structure
from atp_runtime.structure_rows import Blocks

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
BOTH_DIALECTS = ("portable", "native")
HEAD_ROWS = 64
"""What a part of the head is a multiple of: 256 bytes of float32 logits."""
_FIRST_LAYER = "model.language_model.layers.0."
# Names of dtypes in the manifest are NumPy's.
DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.int64: "int64"}


@dataclass(frozen=True)
class SegmentPlan:
    """Layers [first, last) and what follows them."""

    name: str
    first: int
    last: int
    pruning: PruningPoint | None

    @property
    def scores(self) -> tuple[str, ...]:
        """Its outputs that a rule decides by."""
        return self.pruning.scores if self.pruning else ()

    @property
    def routing(self) -> bool:
        """Whether tokens skip the layer behind it."""
        return self.pruning is not None and self.pruning.returns


@dataclass(frozen=True)
class HeadPlan:
    """The LM head's rows [first, last) of the vocabulary."""

    name: str
    first: int
    last: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.last - self.first


@dataclass(frozen=True)
class ExportPlan:
    """All decisions of one export.

    Attributes:
        spec: The model.
        precision: "fp32" or "fp16".
        dialects: "portable", "native" or both; the first is what runs where any would do.
        segments: In the order they run; together they cover every layer once.
        heads: Together they cover the vocabulary once.
        axes: Ranges of the named axes of the manifest.
        stored_bytes: Of the weights that stay integers, by canonical name.
        structure: Which work visual tokens are spared; None is none.
        vision: What thins out an image's tokens before the decoder, if anything does.
    """

    spec: ModelSpec
    precision: str
    dialects: tuple[str, ...]
    segments: tuple[SegmentPlan, ...]
    heads: tuple[HeadPlan, ...]
    axes: dict[str, AxisRange]
    stored_bytes: Mapping[str, int] = field(default_factory=dict)
    structure: Structure | None = None
    vision: VisionPlan | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights, hidden states and caches."""
        return DTYPES[self.precision]

    @property
    def dialect(self) -> str:
        """The first of `dialects`."""
        return self.dialects[0]

    @property
    def prunes(self) -> bool:
        """Whether any segment ends at a pruning point."""
        return any(segment.pruning for segment in self.segments)

    def merges_before(self, segment: SegmentPlan) -> bool:
        """Whether tokens may be merged at the segment's entry."""
        before = (it.pruning for it in self.segments if it.last == segment.first)
        return any(point is not None and point.merges for point in before)

    def routed(self, segment: SegmentPlan) -> bool:
        """Whether it is a layer that tokens skip and come back behind."""
        return any(it.last == segment.first and it.routing for it in self.segments)


def make_plan(  # noqa: PLR0913
    spec: ModelSpec,
    points: Sequence[PruningPoint] = (),
    vision: VisionPlan | None = None,
    *,
    precision: str,
    dialect: str,
    cut_at: Sequence[int] = (),
    max_tokens: int | None = None,
    max_segment_bytes: int | None = None,
    stored_bytes: Mapping[str, int] = MappingProxyType({}),
    structure: Structure | None = None,
) -> ExportPlan:
    """Decides the segments.

    Args:
        spec: The model.
        points: Where and how visual tokens are dropped, ascending; the decoder is cut there. Where
            they come back, the layer is a segment of its own.
        vision: What thins them out before.
        precision: "fp32" or "fp16".
        dialect: "portable", "native" or "both".
        cut_at: Further layers before which it is cut, though nothing is pruned there.
        max_tokens: Longest sequence the axes allow; None is the model's own limit.
        max_segment_bytes: Segments with more weights than that are cut further, at layers where
            nothing is pruned, and so is the head along the vocabulary: a device with little
            memory can then build their engines.
        stored_bytes: See `ExportPlan`.
        structure: Which work visual tokens are spared; they leave where it says.

    Raises:
        InputError: A point or cut is outside the decoder, `max_tokens` is beyond the model's limit,
            or a single layer has more than `max_segment_bytes`.
    """
    points = (*points, *_cut(structure, points, spec.text))
    pruned = {point.before_layer: point for point in points}
    check_layers(tuple(point.before_layer for point in points), spec.text.layers)
    check_layers(tuple(cut_at), spec.text.layers)
    routed = check_routed(points, structure)
    cuts = sorted({*pruned, *cut_at, *(layer + 1 for layer in routed)} - {spec.text.layers})
    longest = _longest(max_tokens, spec.text.max_positions)
    bounds = [0, *cuts, spec.text.layers]
    if max_segment_bytes is not None:
        bounds = _split(bounds, max_segment_bytes, _layer_bytes(spec, precision, stored_bytes))
    segments = tuple(
        SegmentPlan(f"segment_{index}", first, last, pruned.get(last))
        for index, (first, last) in enumerate(pairwise(bounds))
    )
    dialects = BOTH_DIALECTS if dialect == "both" else (dialect,)
    heads = _heads(spec.text, max_segment_bytes, DTYPES[precision])
    _check_counts(points, vision)
    axes = _axes(spec, longest, vision) | _structure_axes(spec, longest, structure)
    if any(point.merges for point in points):
        # One of one token would be that token.
        axes["merged"] = AxisRange(1, 1, max(1, longest // 2))
    return ExportPlan(
        spec, precision, dialects, segments, heads, axes, stored_bytes, structure, vision
    )


def _longest(max_tokens: int | None, limit: int) -> int:
    longest = limit if max_tokens is None else max_tokens
    if not 1 <= longest <= limit:
        raise InputError(
            f"--max-tokens {longest}",
            why=f"the model's positions hold for 1 to {limit} tokens.",
            fix=f"choose a number up to {limit}, or leave the option away.",
        )
    return longest


def _check_counts(points: Sequence[PruningPoint], vision: VisionPlan | None) -> None:
    """Refuses points that would find fewer tokens than they are to keep."""
    if vision is None:
        return
    most = vision.pruning.most
    for point in points:
        if int(point.parameters.get("keep", 0)) >= most:
            raise InputError(
                f"{point.parameters['keep']} tokens are to stay before layer {point.before_layer}",
                why=f"the rule {vision.pruning.rule!r} before the decoder leaves {most} at most.",
                fix="keep fewer there, or more before the decoder.",
            )


def check_routed(points: Sequence[PruningPoint], structure: Structure | None) -> tuple[int, ...]:
    """The layers that tokens skip and come back behind.

    Raises:
        InputError: They are also to be spared work there, or are to be scored there by attention.
    """
    routed = tuple(point.before_layer for point in points if point.returns)
    if routed and structure is not None:
        raise InputError(
            f"layer {routed[0]} is routed, and a structure spares visual tokens work",
            why="they would be spared the layer's work, and neither was trained with the other.",
            fix="leave one of the two away.",
        )
    for point in points:
        if not point.returns and point.before_layer - 1 in routed:
            raise InputError(
                f"pruning before layer {point.before_layer}, and layer {point.before_layer - 1} is "
                "routed",
                why="tokens that skip that layer have no attention there to be scored by.",
                fix="prune before another layer.",
            )
    return routed


def _cut(
    structure: Structure | None, points: Sequence[PruningPoint], text: TextSpec
) -> tuple[PruningPoint, ...]:
    """The point at which all visual tokens leave, if the structure has one."""
    if structure is None:
        return ()
    check_structure(structure, text)
    if structure.mode != FAST and points:
        raise InputError(
            f"pruning before layer {points[0].before_layer} with the mode {structure.mode!r}",
            why="that mode simulates what visual tokens are spared, all of them present.",
            fix=f"prune in the mode {FAST!r}, or leave the points away.",
        )
    for point in points:
        if not structure.kept_heads(point.before_layer - 1, text.heads):
            raise InputError(
                f"pruning before layer {point.before_layer}, and no heads kept in the layer before",
                why="tokens are scored by the attention of that layer's kept heads.",
                fix="prune before another layer, or keep heads there.",
            )
    cut = structure.cut_layer
    if cut is None or structure.mode != FAST:
        return ()
    behind = [point.before_layer for point in points if point.before_layer >= cut]
    if behind:
        raise InputError(
            f"pruning before layer {behind[0]} with cut_layer {cut}",
            why="from the cut on there are no visual tokens to prune.",
            fix="prune before earlier layers, or cut later.",
        )
    return (PruningPoint(cut, "keep_none", {}),)


def tensor_bytes(spec: ModelSpec, precision: str, stored: Mapping[str, int]) -> dict[str, int]:
    """Of each tensor in a bundle, by canonical name.

    Args:
        spec: The model.
        precision: "fp32" or "fp16".
        stored: Of those that stay integers.
    """
    width = DTYPES[precision].itemsize
    shapes = spec.tensor_shapes().items()
    return {name: stored.get(name, math.prod(shape) * width) for name, shape in shapes}


def _layer_bytes(spec: ModelSpec, precision: str, stored: Mapping[str, int]) -> int:
    """Of one decoder layer's weights; all layers are alike."""
    sizes = tensor_bytes(spec, precision, stored).items()
    return sum(size for name, size in sizes if name.startswith(_FIRST_LAYER))


def _split(bounds: Sequence[int], most: int, layer: int) -> list[int]:
    """Cuts segments into equal parts, as few as keep each below `most` bytes."""
    if most < layer:
        raise InputError(
            f"--max-segment-bytes {most}",
            why=f"one layer's weights are {layer} bytes, and a segment has at least one layer.",
            fix=f"allow {layer} or more, or choose a precision with smaller weights.",
        )
    finer = [0]
    for first, last in pairwise(bounds):
        parts = -(-(last - first) // (most // layer))
        finer += [first + (last - first) * part // parts for part in range(1, parts + 1)]
    return finer


def _heads(text: TextSpec, most: int | None, dtype: torch.dtype) -> tuple[HeadPlan, ...]:
    row = text.hidden * dtype.itemsize
    if most is None or text.vocabulary * row <= most:
        return (HeadPlan("head", 0, text.vocabulary),)
    # A part's logits begin where devices want an address: see `atp_runtime.backends.base`.
    rows = max(1, most // (row * HEAD_ROWS)) * HEAD_ROWS
    starts = range(0, text.vocabulary, rows)
    return tuple(
        HeadPlan(f"head_{index}", first, min(first + rows, text.vocabulary))
        for index, first in enumerate(starts)
    )


def _axes(spec: ModelSpec, longest: int, vision: VisionPlan | None) -> dict[str, AxisRange]:
    visual = vision.pruning.most if vision else spec.vision.tokens
    # A prompt of one image and a question is what engines are tuned for.
    typical = min(longest, visual + 64)
    selected = {"selected": AxisRange(1, visual, visual)} if vision and vision.cut else {}
    return {
        "tokens": AxisRange(1, typical, longest),
        "kept": AxisRange(1, typical, longest),
        "past": AxisRange(0, 0, longest),
        "rows": AxisRange(1, min(64, longest), longest),
        # Engines reserve room for them: not for a thousand photos because few tokens are left.
        "images": AxisRange(1, 1, max(1, longest // max(1, spec.vision.tokens))),
        **selected,
    }


def _structure_axes(
    spec: ModelSpec, longest: int, structure: Structure | None
) -> dict[str, AxisRange]:
    if structure is None or structure.mode != FAST:
        return {}
    visual, typical = spec.vision.tokens, min(64, longest)
    axes = {"others": AxisRange(0, typical, longest)}
    if structure.window is not None:
        images = max(1, longest // max(1, visual))
        blocks = -(-spec.vision.grid[0] // Blocks.of(structure.window, spec.vision.grid).rows)
        axes["visual"] = AxisRange(0, min(visual, longest), longest)
        axes["blocks"] = AxisRange(0, blocks, images * blocks)
    return axes


def plan_summary(plan: ExportPlan) -> dict[str, Any]:
    """What identifies a plan: equal summaries of equal checkpoints give equal bundles."""
    # Left out where there is none, so that bundles of before are still known.
    structure = {} if plan.structure is None else {"structure": asdict(plan.structure)}
    return {
        "precision": plan.precision,
        "dialects": plan.dialects,
        "segments": [asdict(segment) for segment in plan.segments],
        "heads": [asdict(head) for head in plan.heads],
        "axes": {name: asdict(axis) for name, axis in plan.axes.items()},
        **structure,
        "vision": asdict(plan.vision) if plan.vision else None,
    }
