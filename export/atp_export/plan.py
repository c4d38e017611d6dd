"""What will be exported: stages, cut points, precision, axes. Nothing is traced or read here.

Read this file first: everything the exporter does follows an `ExportPlan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from atp_models.architecture import ModelSpec
from atp_models.pruning_config import PruningConfig, check_layers
from atp_runtime.errors import InputError
from atp_runtime.manifest import AxisRange, PruningPoint

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# Names of dtypes in the manifest are NumPy's.
DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.int64: "int64"}


@dataclass(frozen=True)
class SegmentPlan:
    """Layers [first, last) and what follows them."""

    name: str
    first: int
    last: int
    pruning: PruningPoint | None


@dataclass(frozen=True)
class ExportPlan:
    """All decisions of one export.

    Attributes:
        spec: The model.
        precision: "fp32" or "fp16".
        dialect: "portable" or "native".
        segments: In the order they run; together they cover every layer once.
        axes: Ranges of the named axes of the manifest.
    """

    spec: ModelSpec
    precision: str
    dialect: str
    segments: tuple[SegmentPlan, ...]
    axes: dict[str, AxisRange]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights, hidden states and caches."""
        return DTYPES[self.precision]

    @property
    def prunes(self) -> bool:
        """Whether any segment ends at a pruning point."""
        return any(segment.pruning for segment in self.segments)


def make_plan(
    spec: ModelSpec,
    config: PruningConfig | None,
    *,
    precision: str,
    dialect: str,
    cut_at: Sequence[int],
    max_tokens: int | None = None,
) -> ExportPlan:
    """Decides the segments.

    Args:
        spec: The model.
        config: How the points prune; None cuts without pruning (every token passes).
        precision: "fp32" or "fp16".
        dialect: "portable" or "native".
        cut_at: Layers before which the decoder is cut, ascending; empty for one segment.
        max_tokens: Longest sequence the axes allow; None is the model's own limit.

    Raises:
        InputError: A cut is outside the decoder, or `max_tokens` is beyond the model's limit.
    """
    check_layers(tuple(cut_at), spec.text.layers)
    limit = spec.text.max_positions
    longest = limit if max_tokens is None else max_tokens
    if not 1 <= longest <= limit:
        raise InputError(
            f"--max-tokens {longest}",
            why=f"the model's positions hold for 1 to {limit} tokens.",
            fix=f"choose a number up to {limit}, or leave the option away.",
        )
    bounds = [0, *cut_at, spec.text.layers]
    segments = tuple(
        SegmentPlan(
            name=f"segment_{index}",
            first=bounds[index],
            last=bounds[index + 1],
            pruning=_point(config, index, bounds[index + 1]) if index < len(cut_at) else None,
        )
        for index in range(len(bounds) - 1)
    )
    return ExportPlan(spec, precision, dialect, segments, _axes(spec, longest))


def _point(config: PruningConfig | None, index: int, before_layer: int) -> PruningPoint | None:
    if config is None:
        return None
    return PruningPoint(
        before_layer=before_layer,
        rule=config.rule,
        parameters=config.rule_parameters(),
        weights=f"points.{index}.",
    )


def _axes(spec: ModelSpec, longest: int) -> dict[str, AxisRange]:
    # A prompt of one image and a question is what engines are tuned for.
    typical = min(longest, spec.vision.tokens + 64)
    return {
        "tokens": AxisRange(1, typical, longest),
        "kept": AxisRange(1, typical, longest),
        "past": AxisRange(0, 0, longest),
        "rows": AxisRange(1, min(64, longest), longest),
        "images": AxisRange(1, 1, max(1, longest // max(1, spec.vision.tokens))),
    }


def plan_summary(plan: ExportPlan) -> dict[str, Any]:
    """What identifies a plan: equal summaries of equal checkpoints give equal bundles."""
    return {
        "precision": plan.precision,
        "dialect": plan.dialect,
        "segments": [asdict(segment) for segment in plan.segments],
        "axes": {name: asdict(axis) for name, axis in plan.axes.items()},
    }
