"""What of an answer's time is not the model: the host's share, and what pruning itself costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from atp_runtime.backends.base import item_size
from atp_runtime.manifest import Manifest
from atp_runtime.profiling.profile_file import Profile, Shares
from atp_runtime.profiling.timed_turn import DECODE, PREFILL, SELECT, Span, TimedTurn


def host_shares(manifest: Manifest, turns: Sequence[TimedTurn], gbps: float | None) -> Shares:
    """The medians of the shares of each answer.

    Args:
        manifest: The bundle's.
        turns: At least one answer.
        gbps: 1e9 bytes per second that the machine moves at best; None where it is not known.
    """
    stages = {stage.name for stage in manifest.stages}
    prefills, decodes = (
        [[span for span in turn.spans if span.phase == phase] for turn in turns]
        for phase in (PREFILL, DECODE)
    )

    def outside(span: Span) -> bool:
        return span.name not in stages

    return Shares(
        _share(prefills, outside),
        _share(decodes, outside) if all(decodes) else None,
        _share(prefills, lambda span: span.name.startswith(SELECT)),
        None if gbps is None else _gather_share(manifest, prefills, gbps),
    )


def share_lines(profile: Profile) -> Iterator[str]:
    """A line for each mode that has shares."""
    for name, mode in profile.modes.items():
        if mode.shares is not None:
            yield f"{name}: {_told(mode.shares)}"


def _told(shares: Shares) -> str:
    decode = "" if shares.decode is None else f", {_percent(shares.decode)} of decode"
    gather = "" if shares.gather is None else f", gather {_percent(shares.gather)}"
    pruning = f"; selection {_percent(shares.selection)}{gather}"
    return f"outside the backend {_percent(shares.prefill)} of prefill{decode}{pruning}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _share(answers: Sequence[Sequence[Span]], counts: Callable[[Span], bool]) -> float:
    shares = [_seconds(filter(counts, spans)) / _seconds(spans) for spans in answers]
    return float(np.median(shares))


def _gather_share(manifest: Manifest, prefills: Sequence[Sequence[Span]], gbps: float) -> float:
    segments = {stage.name for stage in manifest.segments}
    row = manifest.text.hidden * item_size(manifest.hidden_dtype)
    rows = [sum(it.entering or 0 for it in spans if it.name in segments) for spans in prefills]
    taken = [2 * count * row / (1e9 * gbps) for count in rows]  # read, then written
    pairs = zip(taken, prefills, strict=True)
    return float(np.median([seconds / _seconds(spans) for seconds, spans in pairs]))


def _seconds(spans: Iterable[Span]) -> float:
    return sum(span.seconds for span in spans)
