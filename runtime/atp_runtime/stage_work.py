"""The arithmetic and the memory traffic of a stage: what its time is held against."""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.backends.base import item_size
from atp_runtime.latency.memory import weight_bytes
from atp_runtime.manifest import Manifest, Stage
from atp_runtime.statistics import cached_bytes, run_flops


@dataclass(frozen=True)
class Work:
    """Of one run.

    Attributes:
        operations: Floating-point operations of the matrix products.
        moved: Bytes of weights, and of keys and values that are read or written.
    """

    operations: float
    moved: int


def stage_work(
    manifest: Manifest, stage: Stage, tokens: int, past: int = 0, visual: int = 0
) -> Work:
    """What a run of a stage has to do.

    Args:
        manifest: The bundle's.
        stage: Of it.
        tokens: New positions; of the vision stage, the features of its images; of a head, 1.
        past: Cached positions that a segment reads.
        visual: Of the new ones, those that a structure spares work; weights are read all the same.
    """
    moved = _weights_read(manifest, stage)
    if stage.kind == "segment":
        operations = run_flops(manifest, stage, tokens, past, visual)
        return Work(operations, moved + (tokens + past) * cached_bytes(manifest, stage))
    if stage.kind == "head":
        rows = int(stage.outputs[0].shape[-1])
        return Work(2.0 * tokens * rows * manifest.text.hidden, moved)
    # Every weight meets every position once; attention is a few percent of a tower.
    return Work(2.0 * tokens * moved / item_size(manifest.hidden_dtype), moved)


def _weights_read(manifest: Manifest, stage: Stage) -> int:
    """Bytes of the weights that a run reads."""
    if manifest.embedding.file in stage.data:  # a tied head reads it, perhaps a part of it
        rows = int(stage.outputs[0].shape[-1])
        return rows * manifest.text.hidden * item_size(manifest.hidden_dtype)
    return weight_bytes(manifest, stage)
