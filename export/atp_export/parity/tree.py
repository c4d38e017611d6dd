"""A parity report as a tree of ticks."""

from __future__ import annotations

from collections.abc import Iterator

from atp_export.parity.measures import Measure
from atp_export.parity.report import Check, ParityReport

_TICKS = {True: "✓", False: "✗"}
_SHOWN_FAILURES = 8


def render_tree(report: ParityReport) -> str:
    """One line per check with its worst cosine and norm ratio; failures name their tensors."""
    head = f"{_TICKS[report.passed]} parity, {report.mode} ({report.reason})"
    names = [_name(check, report) for check in report.checks]
    width = max(map(len, names), default=0)
    lines = [head]
    for number, (name, check) in enumerate(zip(names, report.checks, strict=True)):
        last = number == len(report.checks) - 1
        lines.append(("└── " if last else "├── ") + _line(f"{name:<{width}}", check))
        lines += [("    " if last else "│   ") + line for line in _failures(check)]
    return "\n".join(lines)


def _name(check: Check, report: ParityReport) -> str:
    return check.name if len(report.dialects) == 1 else f"{check.dialect} {check.name}"


def _line(name: str, check: Check) -> str:
    parts = [f"{_TICKS[check.passed]} {name}"]
    if check.measures:
        parts.append(f"cosine {_cosine(_worst_cosine(check))}  norm {_ratio(_worst_ratio(check))}")
    parts.append(", ".join(text for text in (check.detail, f"against {check.against}") if text))
    if check.problem:
        parts.append(check.problem)
    return "  ".join(parts)


def _failures(check: Check) -> Iterator[str]:
    failed = [measure for measure in check.measures if not measure.passed]
    for number, measure in enumerate(failed[:_SHOWN_FAILURES]):
        last = number == len(failed) - 1
        yield ("└── " if last else "├── ") + _failure(measure)
    if len(failed) > _SHOWN_FAILURES:
        yield f"└── and {len(failed) - _SHOWN_FAILURES} more"


def _failure(measure: Measure) -> str:
    error = measure.max_abs_error
    if error is None:
        return f"✗ {measure.tensor}, {measure.when}: not comparable (NaN, infinite or misshapen)"
    return (
        f"✗ {measure.tensor}, {measure.when}: cosine {_cosine(measure.cosine)}  "
        f"norm {_ratio(measure.norm_ratio)}  largest error {error:.2g}"
    )


def _worst_cosine(check: Check) -> float | None:
    found = [measure.cosine for measure in check.measures]
    return None if None in found else min(value for value in found if value is not None)


def _worst_ratio(check: Check) -> float | None:
    found = [measure.norm_ratio for measure in check.measures]
    numbers = [value for value in found if value is not None]
    return None if len(numbers) < len(found) else max(numbers, key=lambda value: abs(value - 1))


def _cosine(value: float | None) -> str:
    return "none" if value is None else f"1 - {1 - value:.0e}"


def _ratio(value: float | None) -> str:
    return "none" if value is None else f"{value:.5f}"
