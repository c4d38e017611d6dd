"""How many visual tokens were kept, and what that number depends on."""

from __future__ import annotations

from collections.abc import Container, Sequence
from statistics import fmean, median

import numpy as np

from atp_runtime.evaluation.answer_log import AnsweredQuestion
from atp_runtime.evaluation.rank_correlation import spearman
from atp_runtime.evaluation.report import (
    Adaptivity,
    Correlation,
    Latency,
    PointTokens,
    Spread,
    Tokens,
)

_QUANTILES = (0.1, 0.5, 0.9)


def token_statistics(
    answers: Sequence[AnsweredQuestion], layers: Sequence[int], routed: Container[int] = ()
) -> Tokens | None:
    """The tokens of the questions with images; None if there are none.

    Args:
        answers: All.
        layers: Of each pruning point the layer that dropped tokens no longer enter.
        routed: Those behind which they come back.
    """
    shown = [it for it in answers if it.visual_tokens]
    if not shown:
        return None
    return Tokens(
        len(shown),
        entering=spread([it.visual_tokens for it in shown]),
        mean=spread([it.mean_visual_tokens for it in shown]),
        points=tuple(
            PointTokens(layer, spread([it.kept[number] for it in shown]), layer in routed)
            for number, layer in enumerate(layers)
        ),
        correlations=_correlations(shown),
        adaptivity=_adaptivity(shown),
    )


def latency(answers: Sequence[AnsweredQuestion]) -> Latency | None:
    """The times of the questions whose image was run; None if there are none."""
    times = [1e3 * it.seconds["prefill"] for it in answers if it.visual_tokens and it.image_run]
    return Latency(len(times), fmean(times), median(times)) if times else None


def spread(values: Sequence[float]) -> Spread:
    """Mean and quantiles, linear between two values."""
    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), _QUANTILES)
    return Spread(fmean(values), float(low), float(middle), float(high))


def _correlations(shown: Sequence[AnsweredQuestion]) -> tuple[Correlation, ...]:
    correlations = []
    for name in sorted({name for it in shown for name in it.numbers}):
        having = [it for it in shown if name in it.numbers]
        kept = [it.mean_visual_tokens for it in having]
        rho = spearman(kept, [it.numbers[name] for it in having])
        correlations.append(Correlation(name, len(having), rho))
    return tuple(correlations)


def _adaptivity(shown: Sequence[AnsweredQuestion]) -> Adaptivity | None:
    images: dict[tuple[str, ...], list[float]] = {}
    for it in shown:
        images.setdefault(it.images, []).append(it.mean_visual_tokens)
    ranges = [max(kept) - min(kept) for kept in images.values() if len(kept) > 1]
    if not ranges:
        return None
    return Adaptivity(len(ranges), sum(size > 0 for size in ranges), fmean(ranges))
