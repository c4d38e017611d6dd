"""How many tokens enter each segment, from what pruning points leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from atp_runtime.manifest import Stage
from atp_runtime.pruning_point import PruningPoint

Count = TypeVar("Count", int, float)


def tokens_entering(
    segments: Iterable[Stage],
    alive: Count,
    left: Callable[[PruningPoint, Count], Count],
    *,
    first: Count | None = None,
) -> list[Count]:
    """How many tokens enter each segment; those that skip a routed layer come back behind it.

    Args:
        segments: In the order they run; none needs to end at a pruning point.
        alive: Tokens that reach the first.
        left: Asked at each point how many of those alive go on; also at one behind the last.
        first: How many of them enter the first; None is all.
    """
    entering: list[Count] = []
    running = alive if first is None else first
    for stage in segments:
        entering.append(running)
        if not stage.routed:
            alive = running
        running = alive if stage.pruning is None else left(stage.pruning, alive)
    return entering
