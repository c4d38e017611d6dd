"""What a budget fit tells: `reports/budget.json`, and lines for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from atp_calibration.budget.curve import CurvePoint
from atp_calibration.budget.fit import Fit
from atp_calibration.budget.target import MEAN, Target

_UNSURE = 0.015  # of the target: then a twentieth of all sample sets end more than 3 % away


@dataclass(frozen=True)
class PointReport:
    """A pruning point, before and after.

    Attributes:
        before_layer: Which.
        rule: Its rule now.
        parameters: Its parameters now.
        kept_before: Tokens it kept of an image on average.
        kept: Those it keeps now.
    """

    before_layer: int
    rule: str
    parameters: Mapping[str, Any]
    kept_before: float
    kept: float


@dataclass(frozen=True)
class BudgetReport:
    """A whole fit.

    Attributes:
        target: For people.
        kind: See `Target`.
        statistic: Likewise.
        wanted: The target's cost.
        before: What the samples cost as the bundle was, as a target of that kind is told.
        reached: The same of the bundle as it is now.
        method: "fit", or the search that found rates.
        device: What times are from; None where no times were needed.
        samples: Samples that were used.
        standard_error: Of the mean cost, as a share of it: what other samples will differ by.
        points: The pruning points.
        score_name: What the curve's scores are.
        curve: Accuracy against budget; empty if none was asked for.
    """

    target: str
    kind: str
    statistic: str
    wanted: str
    before: str
    reached: str
    method: str
    device: str | None
    samples: int
    standard_error: float
    points: tuple[PointReport, ...]
    score_name: str
    curve: tuple[CurvePoint, ...]


def budget_report(
    target: Target,
    before: Fit,
    after: Fit,
    *,
    method: str,
    device: str | None,
    score_name: str,
    curve: tuple[CurvePoint, ...],
) -> BudgetReport:
    """The report of a fit.

    Args:
        target: What was asked for.
        before: The samples with the bundle as it was.
        after: The samples with the bundle as it is now.
        method: How it was found.
        device: Where times are from.
        score_name: What the curve's scores are.
        curve: Its points.
    """
    return BudgetReport(
        target=str(target),
        kind=target.kind,
        statistic=target.statistic,
        wanted=target.shown(target.cost),
        before=target.shown(before.cost),
        reached=target.shown(after.cost),
        method=method,
        device=device,
        samples=len(after.costs),
        standard_error=_standard_error(after.costs),
        points=tuple(
            PointReport(
                new.before_layer,
                new.rule,
                dict(new.parameters),
                _mean(before, number),
                _mean(after, number),
            )
            for number, new in enumerate(after.points)
        ),
        score_name=score_name,
        curve=curve,
    )


def report_lines(report: BudgetReport) -> list[str]:
    """The report for people."""
    lines = [f"target: {report.target}; was {report.before}, is {report.reached}"]
    lines += [
        f"before layer {point.before_layer}: {point.kept:.1f} tokens of an image instead of "
        f"{point.kept_before:.1f}, {_told(point)}"
        for point in report.points
    ]
    error = 100 * report.standard_error
    lines.append(f"{report.samples} samples; the mean has a standard error of {error:.1f} %")
    if report.statistic == MEAN and report.standard_error > _UNSURE:
        lines.append("other samples may well miss the target by more than 3 %: use more of them")
    for it in report.curve:
        times = "" if it.first_token_ms is None else f", {it.first_token_ms:.0f} ms"
        lines.append(
            f"{it.label:<9} {it.tokens:6.1f} tokens, {it.speedup:.2f} times{times}: "
            f"{report.score_name} {100 * it.score:.1f} % "
            f"({100 * it.low:.1f} to {100 * it.high:.1f})"
        )
    return lines


def _told(point: PointReport) -> str:
    shown = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in point.parameters.items()
        if name in ("keep", "ratio", "redundancy_offset", "spatial_offset")
    ]
    return f"{point.rule} with {', '.join(shown)}" if shown else point.rule


def _mean(fit: Fit, point: int) -> float:
    images = sum(size.images for size in fit.sizes)
    return sum(kept[point] for kept in fit.kept) / images


def _standard_error(costs: tuple[float, ...]) -> float:
    mean = sum(costs) / len(costs)
    return stdev(costs) / math.sqrt(len(costs)) / mean if len(costs) > 1 else 0.0
