"""`report.md`: a report for people."""

from __future__ import annotations

from collections.abc import Callable

from atp_runtime.evaluation.formats.registry import FORMATS
from atp_runtime.evaluation.markdown import interval, percent, quoted, table, text_table
from atp_runtime.evaluation.pruning_choice import OWN
from atp_runtime.evaluation.report import PointTokens, Report, Spread, Tokens


def write_report(report: Report) -> str:
    """The whole text."""
    heading = f"# {report.title}: {report.bundle.name}"
    parts = [part for write in _PARTS if (part := write(report))]
    return "\n\n".join([heading, *parts]) + "\n"


def write_scores(report: Report) -> str:
    """The part that matters most, for the terminal."""
    parts = (_scores(report), _yes_no(report), _tokens(report))
    return "\n\n".join(part for part in parts if part)


def _asked(report: Report) -> str:
    run = report.run
    shown = "" if run.images else ", images not shown"
    sample = "" if run.limit is None else f", drawn with seed {run.seed}"
    text = f"{report.asked} questions about {report.images} images{sample}{shown}, {_rule(report)}."
    notes = [f"The bundle says: {report.bundle.notice}"] if report.bundle.notice else []
    if report.failed:
        notes.append(
            f"{report.failed} could not be asked (answers.jsonl says why); they are wrong."
        )
    if report.cut:
        notes.append(f"{report.cut} answers were cut after {run.max_new_tokens} tokens.")
    return "\n\n".join([text, *notes])


def _rule(report: Report) -> str:
    run = report.run
    if report.tokens is None:
        return "nothing to prune"
    if run.select == OWN:
        return "pruned by the bundle's rule" if report.tokens.points else "dense"
    if not run.keep:
        return "nothing pruned (keep_all)"
    return f"pruned by {run.select} ({', '.join(map(str, run.keep))} tokens)"


def _scores(report: Report) -> str:
    if not report.accuracy:
        return "The right answers are not known, so nothing is scored; see the file to submit."
    circular = "circular" in FORMATS[report.run.format].takes and report.run.circular
    header = ["kind", "n", report.metric, "95 % interval", "constant answer", "not readable"]
    rows = [
        [
            row.kind,
            str(row.count),
            percent(row.score.mean),
            interval(row.score),
            percent(row.constant),
            str(row.unread),
        ]
        for row in report.accuracy
    ]
    note = "\n\nA question is right if it is with its options in every order that the data has."
    return table(header, rows) + (note if circular else "")


def _yes_no(report: Report) -> str:
    if not report.yes_no:
        return ""
    names = ["accuracy", "precision", "recall", "F1", "yes rate"]
    rows = []
    for row in report.yes_no:
        shares = (row.accuracy, row.precision, row.recall, row.f1, row.yes_rate)
        rows.append([row.kind, str(row.count), *map(percent, shares), str(row.neither)])
    kinds = [row.f1 for row in report.yes_no[1:] if row.f1 is not None]
    mean = ""
    if len(kinds) > 1:
        mean = f"\n\nMean F1 over the kinds: {percent(sum(kinds) / len(kinds))}."
    return (
        "Questions whose answer is yes or no; an answer that is neither counts as yes:\n\n"
        + table(["kind", "n", *names, "neither"], rows)
        + mean
    )


def _where(point: PointTokens) -> str:
    layer = point.before_layer
    return f"through layer {layer}" if point.returns else f"from layer {layer} on"


def _tokens(report: Report) -> str:
    tokens = report.tokens
    if tokens is None:
        return ""
    rows = [_spread("before pruning", tokens.entering)]
    rows += [_spread(_where(it), it.kept) for it in tokens.points]
    rows.append(_spread("average over all layers", tokens.mean))
    text = table(["visual tokens", "mean", "10 %", "median", "90 %"], rows)
    return "\n\n".join([text, *_dependence(tokens, adaptive=report.run.select == OWN)])


def _spread(name: str, spread: Spread) -> list[str]:
    return [name, *(f"{it:.1f}" for it in (spread.mean, spread.p10, spread.p50, spread.p90))]


def _dependence(tokens: Tokens, *, adaptive: bool) -> list[str]:
    lines = [
        f"Rank correlation of the kept tokens with `{it.field}`: {it.rho:.2f} (n = {it.count})."
        for it in tokens.correlations
        if it.rho is not None
    ]
    if tokens.adaptivity and tokens.points and adaptive:
        it = tokens.adaptivity
        lines.append(
            f"Of {it.images} images with several questions, {it.differing} kept different "
            f"numbers of tokens for them, {it.spread:.1f} between the largest and the smallest "
            "on average."
        )
    return ["\n".join(f"* {line}" for line in lines)] if lines else []


def _latency(report: Report) -> str:
    machine, times = report.machine, report.latency
    if times is None:
        return ""
    threads = machine.threads or machine.processors
    return (
        f"Prefill: {times.prefill_mean:.0f} ms on average, median {times.prefill_median:.0f} ms, "
        f"over the {times.count} questions whose image was run, on {machine.processor}, "
        f"{threads} of {machine.processors} threads. For information: the machine may have been "
        "busy otherwise."
    )


def _wrong(report: Report) -> str:
    if not report.wrong:
        return ""
    rows = [
        [it.id, it.kind or "-", quoted(it.prompt), quoted(it.truth), quoted(it.answer)]
        for it in report.wrong
    ]
    header = ["id", "kind", "question", "truth", "answer"]
    return "## Some wrong answers\n\n" + text_table(header, rows)


def _provenance(report: Report) -> str:
    run, bundle, machine = report.run, report.bundle, report.machine
    suffix = quoted(run.prompt_suffix) if run.prompt_suffix else "none"
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    rows = [
        ["bundle", f"{bundle.name}, manifest {run.bundle}"],
        ["model", f"{bundle.model}, checkpoint {bundle.checkpoint}"],
        ["precision, dialect", f"{bundle.precision}, {bundle.dialect}"],
        *(["data", f"{it.name}, SHA-256 {it.sha256}"] for it in run.data),
        ["format", " ".join(filter(None, (run.format, run.split)))],
        ["behind each question", suffix],
        ["longest answer", f"{run.max_new_tokens} tokens, greedy"],
        ["backend", run.backend],
        ["software", f"Python {machine.python}, {packages}"],
    ]
    return "## Provenance\n\n" + text_table(["what", "value"], rows)


_PARTS: tuple[Callable[[Report], str], ...] = (
    _asked,
    _scores,
    _yes_no,
    _tokens,
    _latency,
    _wrong,
    _provenance,
)
