"""The plain tables of `atp-export`, and how they write sizes and layers."""

from __future__ import annotations

from rich.table import Table

from atp_runtime.manifest import PruningPoint


def table(*columns: str) -> Table:
    """A table without lines."""
    plain = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        plain.add_column(column)
    return plain


def megabytes(count: int) -> str:
    """Bytes as a short text, in powers of ten."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def layer_range(layers: tuple[int, int] | None) -> str:
    """First and last layer of a segment; nothing for another stage."""
    return f"{layers[0]} to {layers[1] - 1}" if layers else ""


def pruning(point: PruningPoint | None) -> str:
    """What happens after a stage."""
    return f"{point.rule}, before layer {point.before_layer}" if point else ""
