"""What an answer cost: tokens, times, achieved arithmetic and traffic, memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from atp_runtime.decoder_results import StageCall
from atp_runtime.manifest import Manifest, Stage, TextModel

_WIDTHS = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class PointStatistics:
    """Visual tokens entering and leaving a pruning point; `note` says why nothing was dropped."""

    before_layer: int
    entered: int
    kept: int
    note: str | None


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
        preprocess_seconds: Reading, resizing and normalising images, tokenising.
        vision_seconds: The vision stage.
        prefill_seconds: The decoder's prefill, selection included.
        first_token_seconds: From the question to the first sampled token, all of the above.
        tokens_per_second: Of the tokens after the first; None for a single one.
        prefill_gflops: Achieved 1e9 floating-point operations per second in the segments.
        decode_gbps: Achieved 1e9 bytes of weights and caches read per second while decoding.
        peak_memory_bytes: The process's highest resident memory so far.
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


def segment_flops(text: TextModel, stage: Stage, tokens: int, past: int) -> float:
    """Floating-point operations of a segment: its matrix products, as executed.

    Args:
        text: The decoder's dimensions.
        stage: The segment.
        tokens: New positions.
        past: Cached positions.
    """
    first, last = stage.layers
    projections = 2 * tokens * _layer_parameters(text)
    # Queries times keys and weights times values; masked positions are computed too.
    attention = 4 * tokens * (tokens + past) * text.heads * text.head_dim
    return float((last - first) * (projections + attention))


def prefill_flops(manifest: Manifest, calls: Iterable[StageCall]) -> float:
    """Floating-point operations of the segments among `calls`."""
    stages = {stage.name: stage for stage in manifest.segments}
    return sum(
        segment_flops(manifest.text, stages[call.stage], call.tokens, call.past)
        for call in calls
        if call.stage in stages
    )


def decode_bytes(manifest: Manifest, lengths: Iterable[int]) -> int:
    """Bytes that one decode step reads: all weights of segments and head, and the caches.

    Args:
        manifest: The bundle's.
        lengths: Cached positions per segment.
    """
    text, width = manifest.text, _WIDTHS[manifest.precision]
    weights = text.layers * _layer_parameters(text) + text.vocabulary * text.hidden
    per_position = 2 * text.kv_heads * text.head_dim
    cached = 0
    for stage, length in zip(manifest.segments, lengths, strict=True):
        cached += (stage.layers[1] - stage.layers[0]) * length * per_position
    return (weights + cached) * width


def mean_visual_tokens(manifest: Manifest, entering: Iterable[int]) -> float:
    """Visual tokens averaged over all decoder layers, the papers' definition of "tokens".

    Args:
        manifest: The bundle's.
        entering: Visual tokens entering each segment.
    """
    weighted = 0
    for stage, tokens in zip(manifest.segments, entering, strict=True):
        weighted += (stage.layers[1] - stage.layers[0]) * tokens
    return weighted / manifest.text.layers


def peak_memory_bytes() -> int:
    """The process's highest resident memory so far; 0 where the system does not say."""
    try:
        import resource  # noqa: PLC0415 - Unix only
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _layer_parameters(text: TextModel) -> int:
    attention = 2 * text.hidden * text.head_dim * (text.heads + text.kv_heads)
    return attention + 3 * text.hidden * text.intermediate
