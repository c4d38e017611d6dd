"""Tables and numbers in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from atp_runtime.evaluation.intervals import Estimate


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of numbers: the columns behind the first are aligned to the right."""
    return _table(header, ["---", *["---:"] * (len(header) - 1)], rows)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    return _table(header, ["---"] * len(header), rows)


def percent(share: float | None) -> str:
    """A share in percent, with one decimal; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def interval(estimate: Estimate) -> str:
    """An estimate's interval in percent."""
    return f"{percent(estimate.low)} to {percent(estimate.high)}"


def quoted(text: str, longest: int = 400) -> str:
    """A text on one line, as code, so that nothing in it is taken for Markdown."""
    line = " / ".join(part.strip() for part in text.splitlines() if part.strip())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    if not line:
        return "(nothing)"
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def _table(header: Sequence[str], rule: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_row(cells) for cells in (header, rule, *rows))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
