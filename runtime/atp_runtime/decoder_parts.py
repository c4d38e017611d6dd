"""What a decoder consists of: segments with their caches, and the head or its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atp_runtime.backends.base import DeviceArray, LoadedStage
from atp_runtime.kv_cache import SegmentCache
from atp_runtime.manifest import Stage


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment, loaded, with the caches of its layers."""

    number: int
    stage: Stage
    loaded: LoadedStage
    cache: SegmentCache


@dataclass(frozen=True, eq=False)
class Head:
    """The LM head, or a part of it, and where its logits go: float32 [1, rows]."""

    name: str
    loaded: LoadedStage
    logits: DeviceArray


def heads_side_by_side(
    heads: Sequence[tuple[Stage, LoadedStage]], logits: DeviceArray
) -> tuple[Head, ...]:
    """Parts of the head write side by side, so that their logits are one array.

    Args:
        heads: In the order of the vocabulary.
        logits: float32 [1, vocabulary], where they write.
    """
    placed, offset = [], 0
    for stage, loaded in heads:
        shape = stage.outputs[0].shape
        part = logits.owner.array((1, int(shape[-1])), logits.dtype, offset)
        placed.append(Head(stage.name, loaded, part))
        offset += part.nbytes
    return tuple(placed)
