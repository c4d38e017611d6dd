"""The plain tables of `atp-export`, and how they write sizes and layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.table import Table
from rich.text import Text

from atp_runtime.manifest import VisionPruning
from atp_runtime.pruning_point import PruningPoint


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    wrapped: Collection[str] = (),
) -> Table:
    """A table without lines.

    Args:
        columns: Headings.
        rows: Cells, taken literally: brackets in them are no markup.
        right: Columns of numbers, aligned on the right.
        wrapped: Columns that may break into several lines where the terminal is narrow.
    """
    plain = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        plain.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in wrapped,
            overflow="fold" if column in wrapped else "ellipsis",
        )
    for cells in rows:
        plain.add_row(*(Text(cell) for cell in cells))
    return plain


def megabytes(count: int) -> str:
    """Bytes as a short text, in powers of ten."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def layer_range(layers: tuple[int, int] | None) -> str:
    """First and last layer of a segment; nothing for another stage."""
    if layers is None:
        return ""
    first, last = layers[0], layers[1] - 1
    return f"{first} to {last}" if first < last else f"{first}"


def pruning(point: PruningPoint | VisionPruning | None) -> str:
    """What happens after a stage."""
    if isinstance(point, VisionPruning):
        return f"{point.rule}, at most {point.most} tokens stay"
    return f"{point.rule}, before layer {point.before_layer}" if point else ""
