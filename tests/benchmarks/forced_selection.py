"""Pruning to given counts, whatever the scores say."""

from __future__ import annotations

from collections.abc import Sequence

from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import PointSelector, Selection, SelectTokens


def keep_counted(points: Sequence[PruningPoint], keep: Sequence[int]) -> SelectTokens:
    """Keeps so many visual tokens after each point, all of them after points beyond `keep`."""

    def selector(point: PruningPoint, count: int | None) -> PointSelector:
        if count is None:
            return PointSelector(PruningPoint(point.before_layer, "keep_all", {}), {})
        return PointSelector(PruningPoint(point.before_layer, "top_k", {"keep": count}), {})

    counts = [*keep, *([None] * (len(points) - len(keep)))]
    selectors = {
        point.before_layer: selector(point, count)
        for point, count in zip(points, counts, strict=True)
    }

    def select(point: PruningPoint, *scores: object) -> Selection:
        return selectors[point.before_layer](*scores)  # type: ignore[arg-type]

    return select


def counts_for_average(spans: Sequence[int], visual: int, average: float) -> tuple[int, ...]:
    """Counts after each point, each half of the one before, for an all-layer average.

    Args:
        spans: Layers of the segment before the first point, and of those behind each point.
        visual: Tokens before the first point.
        average: Visual tokens, averaged over all layers.

    Raises:
        ValueError: No such counts have that average: the layers before the first point alone
            have more, or too many would have to stay.
    """
    weights = [span / 2**number for number, span in enumerate(spans[1:])]
    first = (average * sum(spans) - visual * spans[0]) / sum(weights) if weights else 0.0
    counts = tuple(round(first / 2**number) for number in range(len(weights)))
    if not counts or counts[-1] < 1 or counts[0] > visual:
        raise ValueError(f"no counts after the points come to {average:g} on average")
    return counts
