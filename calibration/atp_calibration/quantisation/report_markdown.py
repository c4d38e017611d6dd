"""Writes the report of a quantisation for people."""

from __future__ import annotations

from collections.abc import Iterator

from atp_calibration.quantisation.report import COSINE_BAR, QuantisationReport, StreamRow
from atp_runtime.evaluation.markdown import table, text_table

_SHOWN = 30


def write_quantisation(report: QuantisationReport) -> str:
    """The report as Markdown."""
    return "\n\n".join(_sections(report)) + "\n"


def _sections(report: QuantisationReport) -> Iterator[str]:
    kept = sum(not row.quantised for row in report.layers)
    block = f", blocks of {report.block_size}" if report.precision == "int4" else ""
    yield f"# {report.precision.upper()}{block}: {', '.join(report.parts)}"
    yield (
        f"{len(report.layers) - kept} linear layers quantised, {kept} left as they were; learned "
        f"from {report.samples} samples, {len(report.skipped)} skipped."
    )
    if report.undivided:
        yield (
            f"{len(report.undivided)} layers stay as they are because their inputs are no multiple "
            f"of {report.block_size}, such as `{report.undivided[0]}`."
        )
    if report.accuracy:
        before, after = report.accuracy.before, report.accuracy.after
        change = f"({after - before:+.1f})"
        yield f"Accuracy on the samples: {before:.1f} before, {after:.1f} after {change}."
    yield f"## Stages\n\n{_stages(report)}"
    yield (
        f"Cosine and norms are those of the stage's output for the original's input, over the runs "
        f"of a few samples, prompts and decoding; the bar is a mean cosine of {COSINE_BAR}: "
        f"{'met' if report.passed else '**not met**'}."
    )
    if report.streams:
        yield f"## Pruned and unpruned streams\n\n{_streams(report)}"
    yield f"## Layers by error\n\n{_layers(report)}"
    if report.skipped:
        rows = [[id_, problem] for id_, problem in report.skipped.items()]
        yield f"## Skipped samples\n\n{text_table(['sample', 'problem'], rows)}"


def _stages(report: QuantisationReport) -> str:
    return table(
        ["stage", "runs", "mean cosine", "least cosine", "norm ratio", "MB before", "MB after"],
        [
            [
                row.name,
                str(row.runs),
                f"{row.mean_cosine:.5f}",
                f"{row.cosine:.5f}",
                f"{row.norm_ratio:.4f}",
                f"{row.bytes_before / 1e6:.1f}",
                f"{row.bytes_after / 1e6:.1f}",
            ]
            for row in report.stages
        ],
    )


def _streams(report: QuantisationReport) -> str:
    rows = sorted(report.streams, key=_difference, reverse=True)
    head = ["layer", "largest, pruned", "unpruned", "99.9 %, pruned", "unpruned", "difference"]
    cells = [
        [
            f"`{row.layer}`",
            f"{row.pruned[0]:.3g}",
            f"{row.unpruned[0]:.3g}",
            f"{row.pruned[1]:.3g}",
            f"{row.unpruned[1]:.3g}",
            f"{100 * _difference(row):.0f} %",
        ]
        for row in rows[:_SHOWN]
    ]
    mean = sum(map(_difference, rows)) / len(rows)
    text = f"Of the 99.9th percentiles, {100 * mean:.1f} % on average; the largest {len(cells)}:"
    return f"{text}\n\n{table(head, cells)}"


def _difference(row: StreamRow) -> float:
    pruned, unpruned = row.pruned[1], row.unpruned[1]
    return abs(pruned - unpruned) / max(unpruned, 1e-12)


def _layers(report: QuantisationReport) -> str:
    shown = report.layers[:_SHOWN]
    head = ["layer", "error", "quantised", "alpha", "by", "threshold", "largest"]
    cells = [
        [
            f"`{row.name}`",
            f"{100 * row.error:.2f} %",
            "yes" if row.quantised else "no",
            "-" if row.alpha is None else f"{row.alpha:g}",
            row.method or "-",
            "-" if row.threshold is None else f"{row.threshold:.4g}",
            f"{row.largest:.4g}",
        ]
        for row in shown
    ]
    rest = len(report.layers) - len(shown)
    more = f"\n\nand {rest} more, see report.json." if rest > 0 else ""
    return table(head, cells) + more
