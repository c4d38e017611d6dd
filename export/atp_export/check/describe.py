"""A check's report as tables for people."""

from __future__ import annotations

from rich.console import Console

from atp_export.check.acceptance import CheckReport, StageVerdict
from atp_export.tables import megabytes, table

_SCOPE = (
    "This proves that a parser takes the graphs and a builder finds kernels, for Ampere (SM86). "
    "It does not prove speed, and not TensorRT 10.3 (JetPack 6), whose parser is older."
)

# TensorRT's names of the types that are computed in; indices and shapes are left out.
_SHORT = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "INT4": "int4"}


def print_check(report: CheckReport, console: Console) -> None:
    """Prints what became of every graph, and why of those that were refused."""
    columns = ("graph", "layers", "computes in", "engine", "build")
    rows = [_row(verdict) for verdict in report.verdicts]
    numbers = ("layers", "engine", "build")
    console.print(table(columns, rows, right=numbers, wrapped=("computes in",)))
    for verdict in report.verdicts:
        if verdict.problem:
            _say(console, f"✗ {_name(verdict)}: {verdict.problem}")
    _say(console, "")
    for name, lines in report.lint.items():
        for line in lines:
            _say(console, f"✗ TensorRT 10.3, {name}: {line}")
    if report.linted and not report.lint:
        _say(console, "✓ TensorRT 10.3: opset and operators of the portable graphs are on its list")
    accepted = sum(verdict.accepted for verdict in report.verdicts)
    made = f"{accepted} of {len(report.verdicts)} graphs became engines"
    _say(console, f"{report.library}: {made} in {report.seconds:.1f} s. {_SCOPE}")
    if report.ranges == "assumed":
        _say(console, "INT8 was built with assumed ranges: this machine cannot run the bundle.")


def _row(verdict: StageVerdict) -> tuple[str, ...]:
    if not verdict.accepted:
        return (f"✗ {_name(verdict)}", "", "", "", "")
    types = [f"{_SHORT[name]} {n}" for name, n in verdict.types.items() if name in _SHORT]
    return (
        f"✓ {_name(verdict)}",
        str(verdict.layers),
        ", ".join(sorted(types)),
        megabytes(verdict.engine_bytes),
        f"{verdict.seconds:.1f} s",
    )


def _name(verdict: StageVerdict) -> str:
    return f"{verdict.dialect} {verdict.precision} {verdict.stage}"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
