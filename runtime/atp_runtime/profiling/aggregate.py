"""Many answers' times as one mode of a profile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from atp_runtime.manifest import Manifest
from atp_runtime.profiling.profile_file import MemorySample, Mode, Row, Spread
from atp_runtime.profiling.shares import host_shares
from atp_runtime.profiling.timed_turn import DECODE, Span, TimedTurn
from atp_runtime.stage_work import Work, stage_work
from atp_runtime.statistics import cached_bytes


def spread(seconds: Sequence[float]) -> Spread:
    """Of at least one run."""
    minimum, median, p90, p99 = np.percentile(seconds, [0, 50, 90, 99]).tolist()
    return Spread(minimum, median, p90, p99)


def make_mode(
    manifest: Manifest,
    turns: Sequence[TimedTurn],
    memory: Sequence[MemorySample],
    joules: float | None = None,
    gbps: float | None = None,
) -> Mode:
    """A mode of at least one answer.

    Args:
        manifest: The bundle's.
        turns: Their times; each has the same parts.
        memory: During one more.
        joules: Of an answer.
        gbps: 1e9 bytes per second that the machine moves at best; None where it is not known.
    """
    by_part: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for turn in turns:
        for span in turn.spans:
            by_part[span.phase, span.name].append(span)
    tokens = [turn.token_seconds for turn in turns if turn.token_seconds is not None]
    cached = [
        sum(
            length * cached_bytes(manifest, stage)
            for length, stage in zip(turn.cached, manifest.segments, strict=True)
        )
        for turn in turns
    ]
    return Mode(
        spread([turn.first_token_seconds for turn in turns]),
        spread(tokens) if tokens else None,
        float(np.mean([turn.visual_tokens for turn in turns])),
        float(np.mean(cached)),
        tuple(_row(manifest, spans) for spans in by_part.values()),
        tuple(memory),
        joules,
        host_shares(manifest, turns, gbps),
    )


def _row(manifest: Manifest, spans: Sequence[Span]) -> Row:
    phase, name = spans[0].phase, spans[0].name
    # Decoding is told per token, everything else per answer.
    parts = [span.calls if phase == DECODE else 1 for span in spans]
    seconds = spread([span.seconds / part for span, part in zip(spans, parts, strict=True)])
    works = [span_work(manifest, span, part) for span, part in zip(spans, parts, strict=True)]
    known = [work for work in works if work is not None]
    rates: tuple[float | None, float | None] = (None, None)
    if known and seconds.median > 0:
        operations, moved = (
            float(np.mean(values))
            for values in ([it.operations for it in known], [it.moved for it in known])
        )
        rates = operations / seconds.median / 1e9 or None, moved / seconds.median / 1e9
    return Row(
        phase,
        name,
        _mean([span.entering for span in spans], parts),
        _mean([span.leaving for span in spans], parts),
        seconds,
        *rates,
    )


def _mean(counts: Sequence[int | None], parts: Sequence[int]) -> float | None:
    known = [count / part for count, part in zip(counts, parts, strict=True) if count is not None]
    return float(np.mean(known)) if known else None


def span_work(manifest: Manifest, span: Span, part: int) -> Work | None:
    """What one of a span's equal parts has to do; None where it is no stage's.

    Args:
        manifest: The bundle's.
        span: Of a turn.
        part: How many parts it has.
    """
    stages = {stage.name: stage for stage in manifest.stages}
    stage = stages.get(span.name)
    if stage is None:
        return None
    # A tower computes all of an image, whatever a rule behind it leaves.
    whole = span.calls * manifest.vision.tokens
    tokens = whole if stage.kind == "vision" else span.entering or 0
    work = stage_work(manifest, stage, tokens // part, span.past // part, span.visual // part)
    quantised_tower = stage.kind == "vision" and manifest.quantisation is not None
    # A tower's arithmetic is told from its weights' bytes, which quantised ones do not say.
    return Work(0.0, work.moved) if quantised_tower else work
