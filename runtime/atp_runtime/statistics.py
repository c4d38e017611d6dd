"""What an answer cost: tokens, times, achieved arithmetic and traffic, memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atp_runtime.backends.base import item_size
from atp_runtime.context import Prefill
from atp_runtime.decoder_results import PointResult, StageCall
from atp_runtime.manifest import Manifest, Stage, TextModel
from atp_runtime.structure import MASKED
from atp_runtime.structure_work import PrefillRows, structured_flops
from atp_runtime.token_flow import tokens_entering

_LINUX_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class PointStatistics:
    """What a pruning point did.

    Attributes:
        before_layer: The decoder layer that dropped tokens no longer enter.
        entered: Visual tokens before it.
        kept: Visual tokens behind it.
        note: Says so when the rule did nothing, or less than its name promises.
        returns: Whether the others skip that layer alone.
    """

    before_layer: int
    entered: int
    kept: int
    note: str | None
    returns: bool = False


@dataclass(frozen=True)
class Statistics:
    """What one answer cost.

    Attributes:
        prompt_tokens: Tokens of the turn that were prefilled, visual ones included.
        reused_tokens: Tokens whose keys and values the caches already held.
        visual_tokens: Visual tokens among the prefilled ones.
        points: The pruning points, in order; empty without images.
        mean_visual_tokens: Visual tokens averaged over all decoder layers; None without images.
        answer_tokens: Tokens that were sampled.
        preprocess_seconds: Tokenising; reading, resizing and normalising images.
        vision_seconds: The vision stage.
        prefill_seconds: The decoder's prefill, selection included.
        first_token_seconds: From the question to the first sampled token, all of the above.
        tokens_per_second: Of the tokens after the first; None for a single one.
        prefill_gflops: 1e9 floating-point operations per second, achieved by the segments.
        decode_gbps: 1e9 bytes of weights and caches per second, read for the tokens after the
            first; None for a single one.
        peak_memory_bytes: The process's highest resident memory so far; 0 where the system does
            not say.
    """

    prompt_tokens: int
    reused_tokens: int
    visual_tokens: int
    points: tuple[PointStatistics, ...]
    mean_visual_tokens: float | None
    answer_tokens: int
    preprocess_seconds: float
    vision_seconds: float
    prefill_seconds: float
    first_token_seconds: float
    tokens_per_second: float | None
    prefill_gflops: float
    decode_gbps: float | None
    peak_memory_bytes: int


@dataclass(frozen=True)
class TurnTimes:
    """Moments of a turn, in seconds of `time.perf_counter`.

    Attributes:
        began: The question came.
        prepared: Prompt and pixels were ready.
        seen: The vision stage had run.
        prefilled: The decoder had run the prompt.
        sampled: One moment per token of the answer, at least one.
    """

    began: float
    prepared: float
    seen: float
    prefilled: float
    sampled: tuple[float, ...]


def turn_statistics(manifest: Manifest, prefill: Prefill, times: TurnTimes) -> Statistics:
    """The statistics of a turn.

    Args:
        manifest: The bundle's.
        prefill: The turn's prompt.
        times: When what happened.
    """
    visual, result = len(prefill.chunk.visual()), prefill.result
    entering = visual_tokens_entering(manifest, visual, result.points)
    steps, seconds = len(times.sampled) - 1, times.sampled[-1] - times.sampled[0]
    traffic = decode_bytes(manifest, prefill.state.lengths, steps)
    return Statistics(
        prompt_tokens=len(prefill.chunk),
        reused_tokens=prefill.reused,
        visual_tokens=visual,
        points=_points(result.points) if visual else (),
        mean_visual_tokens=mean_visual_tokens(manifest, entering) if visual else None,
        answer_tokens=len(times.sampled),
        preprocess_seconds=times.prepared - times.began,
        vision_seconds=times.seen - times.prepared,
        prefill_seconds=times.prefilled - times.seen,
        first_token_seconds=times.sampled[0] - times.began,
        tokens_per_second=steps / seconds if steps else None,
        prefill_gflops=_gflops(manifest, result.calls),
        decode_gbps=traffic / seconds / 1e9 if steps else None,
        peak_memory_bytes=peak_memory_bytes(),
    )


def visual_tokens_entering(
    manifest: Manifest, visual: int, points: Iterable[PointResult]
) -> list[int]:
    """How many visual tokens enter each segment; a segment need not end at a pruning point.

    Args:
        manifest: The bundle's.
        visual: Those of the prompt.
        points: What happened at the pruning points, in order.
    """
    left = {point.before_layer: int(point.selection.kept.sum()) for point in points}
    return tokens_entering(
        manifest.segments, visual, lambda point, alive: left.get(point.before_layer, alive)
    )


def mean_visual_tokens(manifest: Manifest, entering: Sequence[int]) -> float:
    """Visual tokens averaged over all decoder layers, the papers' definition of "tokens".

    Args:
        manifest: The bundle's.
        entering: Visual tokens entering each segment.
    """
    weighted = sum(
        _depth(stage) * tokens for stage, tokens in zip(manifest.segments, entering, strict=True)
    )
    return weighted / manifest.text.layers


def segment_flops(text: TextModel, stage: Stage, tokens: int, past: int) -> int:
    """Floating-point operations of a segment's matrix products, as executed.

    A product of [m, k] and [k, n] has 2 m k n. Attention counts all pairs of positions: the
    masked ones are computed, too.

    Args:
        text: The decoder's dimensions.
        stage: The segment.
        tokens: New positions.
        past: Cached positions.
    """
    width = text.heads * text.head_dim
    projections = 2 * text.hidden * (width + text.kv_heads * text.head_dim)
    weights = projections + 3 * text.hidden * text.intermediate
    attention = 4 * tokens * (tokens + past) * width
    return _depth(stage) * (2 * tokens * weights + attention)


def run_flops(manifest: Manifest, stage: Stage, tokens: int, past: int, visual: int) -> int:
    """Floating-point operations of a run of a segment, as executed.

    Args:
        manifest: The bundle's.
        stage: The segment.
        tokens: New positions.
        past: Cached positions.
        visual: Of the new ones, those that a structure spares work.
    """
    structure = manifest.structure
    if structure is None or structure.mode == MASKED or not stage.tells_visual:
        return segment_flops(manifest.text, stage, tokens, past)
    rows = PrefillRows(visual, tokens - visual, past)
    layers, grid = range(*stage.layers), manifest.vision.grid
    return structured_flops(manifest.text, structure, grid, layers, rows)


def decode_bytes(manifest: Manifest, lengths: Sequence[int], steps: int) -> int:
    """Bytes that decoding reads: in each step all weights of segments and head, and the caches.

    Args:
        manifest: The bundle's.
        lengths: Cached positions per segment before the first step; each step adds one.
        steps: Tokens that were fed back.
    """
    stages = (*manifest.segments, *manifest.heads)
    # Parts of a tied head read the same file.
    files = dict.fromkeys(name for stage in stages for name in stage.data)
    weights = sum(manifest.files[name].bytes for name in files)
    past = (steps * length + steps * (steps - 1) // 2 for length in lengths)
    rows = zip(manifest.segments, past, strict=True)
    return steps * weights + sum(cached_bytes(manifest, stage) * count for stage, count in rows)


def cached_bytes(manifest: Manifest, stage: Stage) -> int:
    """Bytes of one position's keys and values in all layers of a segment."""
    values = 2 * manifest.text.kv_heads * manifest.text.head_dim
    return _depth(stage) * values * item_size(manifest.hidden_dtype)


def peak_memory_bytes() -> int:
    """The process's highest resident memory so far; 0 where the system does not say."""
    if _LINUX_STATUS.is_file():
        # Not getrusage: on Linux its peak includes that of the program that started this one.
        lines = _LINUX_STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(peaks[0]) * 1024 if peaks else 0
    try:
        import resource  # noqa: PLC0415 - Unix only
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _points(points: Iterable[PointResult]) -> tuple[PointStatistics, ...]:
    return tuple(
        PointStatistics(
            point.before_layer,
            len(point.selection.kept),
            int(point.selection.kept.sum()),
            point.selection.note,
            point.returns,
        )
        for point in points
    )


def _gflops(manifest: Manifest, calls: Iterable[StageCall]) -> float:
    stages = {stage.name: stage for stage in manifest.segments}
    calls = [call for call in calls if call.stage in stages]
    operations = sum(
        run_flops(manifest, stages[call.stage], call.tokens, call.past, call.visual)
        for call in calls
    )
    return operations / sum(call.seconds for call in calls) / 1e9


def _depth(stage: Stage) -> int:
    return stage.layers[1] - stage.layers[0]
