"""A comparison as Markdown and as a spreadsheet reads it."""

from __future__ import annotations

import csv
import io

from atp_runtime.evaluation.markdown import interval, percent, table
from atp_runtime.policies.result import Comparison, PolicyResult, by_kind

_MIB = 2**20
_CSV = (
    "policy",
    "score",
    "score_low",
    "score_high",
    "visual_tokens",
    "first_token_ms",
    "first_token_p90_ms",
    "tokens_per_second",
    "cache_bytes",
    "gflop",
    "quicker",
)


def comparison_markdown(comparison: Comparison) -> str:
    """What `comparison.md` holds and the terminal shows."""
    header = [
        "policy",
        comparison.metric,
        "difference (95 %)",
        "tokens",
        "first token, ms",
        "90 %",
        "times sooner",
        "tokens/s",
        "KV, MiB",
        "GFLOP",
    ]
    parts = [
        f"# {comparison.checkpoint}: pruning policies on {comparison.data}",
        table(header, [_row(result) for result in comparison.results]),
        _note(comparison),
    ]
    kinds = by_kind(comparison.results)
    if kinds:
        rows = [
            [kind, *(percent(result.kinds.get(kind)) for result in comparison.results)]
            for kind in kinds
        ]
        parts.append(table(["kind", *(result.policy for result in comparison.results)], rows))
    return "\n\n".join(parts) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """One line per policy."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_CSV)
    for it in comparison.results:
        numbers = (
            it.score.mean,
            it.score.low,
            it.score.high,
            it.visual_tokens,
            1e3 * it.first_token_seconds,
            1e3 * it.first_token_p90,
            it.tokens_per_second,
            it.cache_bytes,
            it.gflops,
            it.quicker,
        )
        told = ["" if number is None else f"{number:.6g}" for number in numbers]
        lines.writerow([it.policy, *told])
    return text.getvalue()


def _row(it: PolicyResult) -> list[str]:
    difference = "-"
    if it.difference is not None:
        mean, low, high = (
            100 * x for x in (it.difference.mean, it.difference.low, it.difference.high)
        )
        difference = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return [
        it.policy,
        f"{percent(it.score.mean)} ({interval(it.score)})",
        difference,
        "-" if it.visual_tokens is None else f"{it.visual_tokens:.1f}",
        f"{1e3 * it.first_token_seconds:.0f}",
        f"{1e3 * it.first_token_p90:.0f}",
        f"{it.quicker:.2f}",
        f"{it.tokens_per_second:.1f}",
        f"{it.cache_bytes / _MIB:.1f}",
        f"{it.gflops:.1f}",
    ]


def _note(comparison: Comparison) -> str:
    machine = comparison.machine
    threads = f", {machine.threads} threads" if machine.threads else ""
    return (
        f"{comparison.asked} questions; differences are from {comparison.results[0].policy}, over "
        f"the same questions. Times are medians of {comparison.timed} answers of "
        f"{comparison.new_tokens} tokens, the bundles taking turns; {comparison.precision} on "
        f"{comparison.backend}, {machine.processor}{threads}. Tokens are visual tokens averaged "
        "over all decoder layers; KV is what the caches hold at the end of an answer; GFLOP are "
        "the matrix products up to the first token, the vision tower included."
    )
