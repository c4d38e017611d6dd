"""What `atp-run` tells about an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atp_runtime.answer import Answer
from atp_runtime.schema import to_json
from atp_runtime.statistics import Statistics

_CUT = {
    "length": "the answer was cut: --max-new-tokens allows a longer one",
    "context": "the answer was cut: the model has no position left, begin a new conversation",
}
_EMPTY = "the answer is empty: the model ended it at once"


def answer_document(
    answer: Answer, notice: str | None, pictures: Sequence[Path], deadline: float | None
) -> dict[str, Any]:
    """An answer as a part of a JSON document.

    Args:
        answer: The answer.
        notice: What the bundle wants said with it.
        pictures: What was drawn.
        deadline: When the first token was due, in seconds; None for no deadline.
    """
    met = None if deadline is None else answer.statistics.first_token_seconds <= deadline
    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "notice": notice,
        "pictures": [str(path) for path in pictures],
        "deadline": None if deadline is None else {"seconds": deadline, "met": met},
        "statistics": to_json(answer.statistics),
    }


def notes(
    answer: Answer, notice: str | None, pictures: Sequence[Path], deadline: float | None
) -> list[str]:
    """What belongs below an answer, as lines for people; arguments as `answer_document`."""
    ending = _CUT.get(answer.finish_reason) or (None if answer.text.strip() else _EMPTY)
    lines = [f"note: {text}" for text in (ending, notice) if text]
    lines += [] if deadline is None else [_deadline(answer, deadline)]
    return lines + [f"picture: {path}" for path in pictures]


def statistics_lines(statistics: Statistics) -> list[str]:
    """The statistics as lines for people."""
    s = statistics
    reused = f"; {s.reused_tokens} more from the cache" if s.reused_tokens else ""
    lines = [("prompt", f"{s.prompt_tokens} tokens, {s.visual_tokens} of them visual{reused}")]
    for point in s.points:
        share = 100 * point.kept / point.entered if point.entered else 0
        note = f" ({point.note})" if point.note else ""
        where, what = ("through", "routed") if point.returns else ("before", "kept")
        told = f"{point.kept} of {point.entered} visual tokens {what}, {share:.0f} %{note}"
        lines.append((f"{where} layer {point.before_layer}", told))
    if s.mean_visual_tokens is not None:
        lines.append(("visual tokens", f"{s.mean_visual_tokens:.1f} on average over all layers"))
    parts = (s.preprocess_seconds, s.vision_seconds, s.prefill_seconds)
    images, vision, prefill = (f"{1e3 * seconds:.0f}" for seconds in parts)
    told = f"{1e3 * s.first_token_seconds:.0f} ms: images and tokens {images}, vision {vision}, "
    lines.append(("first token", f"{told}prefill {prefill} ({s.prefill_gflops:.1f} GFLOP/s)"))
    lines.append(("answer", f"{s.answer_tokens} tokens{_rate(s)}"))
    if s.peak_memory_bytes:
        lines.append(("peak memory", f"{s.peak_memory_bytes / 2**20:.0f} MiB"))
    return [f"{name:<17} {told}" for name, told in lines]


def _deadline(answer: Answer, deadline: float) -> str:
    """What the deadline made of the pruning, and whether it was met."""
    told = []
    for point in answer.points:
        images = point.selection.diagnostics.values()
        wanted, kept = (int(sum(it[name] for it in images)) for name in ("wanted", "kept"))
        if kept < wanted:
            told.append(f"before layer {point.before_layer} tightened from {wanted} to {kept}")
    seconds = answer.statistics.first_token_seconds
    verdict = "met" if seconds <= deadline else "missed"
    changes = "; ".join(told) or "pruning as the bundle has it"
    return (
        f"deadline {1e3 * deadline:.0f} ms {verdict}: first token after {1e3 * seconds:.0f} ms; "
        f"{changes}"
    )


def _rate(statistics: Statistics) -> str:
    if statistics.tokens_per_second is None or statistics.decode_gbps is None:
        return ""
    rate, traffic = statistics.tokens_per_second, statistics.decode_gbps
    return f", {rate:.1f} tokens/s ({traffic:.1f} GB/s)"
