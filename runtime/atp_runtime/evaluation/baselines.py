"""Pruning that looks at no score: random tokens, and a uniform grid.

What a learned rule must beat with as many tokens. Both choose, image by image, among the tokens
that are still there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import BoolArray, FloatArray, IndexArray, Selection, VisualTokens

Choose = Callable[[IndexArray, IndexArray, int], BoolArray]
"""Which of an image's n tokens stay, bool [n]: from their rows [n], columns [n] and how many."""


@dataclass(frozen=True)
class KeepChosen:
    """A `SelectTokens` that keeps a fixed number of tokens of each image.

    Attributes:
        keep: How many, by the layer that the others no longer enter.
        choose: Which.
    """

    keep: Mapping[int, int]
    choose: Choose

    def __call__(
        self,
        point: PruningPoint,
        scores_self: FloatArray,  # noqa: ARG002 - of the protocol
        scores_cross: FloatArray,  # noqa: ARG002 - of the protocol
        has_text: bool,  # noqa: ARG002 - of the protocol
        visual: VisualTokens,
    ) -> Selection:
        """Says which visual tokens stay."""
        kept = np.zeros(len(visual), dtype=np.bool_)
        for image in np.unique(visual.image):
            at = np.flatnonzero(visual.image == image)
            count = min(self.keep[point.before_layer], len(at))
            kept[at] = self.choose(visual.row[at], visual.column[at], count)
        return Selection(kept)


def random_tokens(random: np.random.Generator) -> Choose:
    """Any tokens, each equally likely."""

    def choose(row: IndexArray, _column: IndexArray, count: int) -> BoolArray:
        kept = np.zeros(len(row), dtype=np.bool_)
        kept[random.permutation(len(row))[:count]] = True
        return kept

    return choose


def uniform_tokens(rows: int, columns: int) -> Choose:
    """The tokens nearest to an even grid; those without a place on the image are dropped first.

    Args:
        rows: Of the image's patches.
        columns: Likewise.
    """

    def choose(row: IndexArray, column: IndexArray, count: int) -> BoolArray:
        kept = np.zeros(len(row), dtype=np.bool_)
        nowhere = row < 0
        for wanted_row, wanted_column in even_grid(rows, columns, count):
            distance = (row - wanted_row) ** 2 + (column - wanted_column) ** 2
            distance = np.where(nowhere, rows**2 + columns**2, distance).astype(np.float64)
            kept[np.argmin(np.where(kept, np.inf, distance))] = True
        return kept

    return choose


def even_grid(rows: int, columns: int, count: int) -> list[tuple[int, int]]:
    """Exactly `count` patches, spread evenly: row and column of each.

    Lines at equal distances, as many as make the grid about as fine across as along, and on each
    of them its share of the patches at equal distances.

    Args:
        rows: Of the image's patches.
        columns: Likewise.
        count: At most rows * columns.
    """
    if count == 0:
        return []
    fewest = math.ceil(count / columns)
    lines = min(max(round(math.sqrt(count * rows / columns)), fewest), rows)
    shares = [count * (line + 1) // lines - count * line // lines for line in range(lines)]
    return [
        (_middle(line, lines, rows), _middle(place, share, columns))
        for line, share in enumerate(shares)
        for place in range(share)
    ]


def _middle(part: int, parts: int, length: int) -> int:
    """Where the middle of the part is, when `length` is cut into equal parts."""
    return (2 * part + 1) * length // (2 * parts)
