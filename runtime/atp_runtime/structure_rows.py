"""How the rows of one sequence are told apart for segments that spare visual tokens some work.

Windows are computed block by block, never as a matrix of all tokens by all tokens: what a block
sees is gathered by tables made here, so that tokens pruned before leave holes in them and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atp_runtime.selection import IndexArray, VisualTokens


@dataclass(frozen=True)
class Blocks:
    """How windows on a grid are computed: block by block of whole rows, [query, key] each.

    A block sees its own rows of patches and `radius` more above and below, so that all neighbours
    of its tokens are among them.

    Attributes:
        radius: Neighbours to each side.
        rows: Rows of patches in a block.
        columns: Patches in a row.
    """

    radius: int
    rows: int
    columns: int

    @classmethod
    def of(cls, window: int, grid: tuple[int, int]) -> Blocks:
        """The blocks of a window on a grid of rows and columns; none is taller than the grid."""
        # As many as it sees beyond its own: of one row per block most would be gathered in vain.
        return cls(window // 2, min(max(1, window - 1), grid[0]), grid[1])

    @property
    def queries(self) -> int:
        """Places in a block."""
        return self.rows * self.columns

    @property
    def keys(self) -> int:
        """Places that a block sees."""
        return (self.rows + 2 * self.radius) * self.columns


@dataclass(frozen=True, eq=False)
class StructureRows:
    """Which row of a sequence is what, as structured segments are told.

    Attributes:
        visual_rows: int64 [visual]: tokens with a place on a grid.
        other_rows: int64 [others]: all others, in order.
        row_slots: int64 [kept]: where each token stands in [others, visual].
        window_queries: int64 [blocks, `Blocks.queries`]: the tokens at the places of each block;
            -1 where none is.
        window_keys: int64 [blocks, `Blocks.keys`]: those at the places that a block sees; likewise.
        window_cells: int64 [visual]: where each visual token is among all queries.
    """

    visual_rows: IndexArray
    other_rows: IndexArray
    row_slots: IndexArray
    window_queries: IndexArray
    window_keys: IndexArray
    window_cells: IndexArray

    @classmethod
    def of(cls, visual: VisualTokens, tokens: int, blocks: Blocks | None) -> StructureRows:
        """What a sequence of `tokens` tokens with these visual ones needs.

        Args:
            visual: Those with a place on a grid are visual here.
            tokens: Of the sequence.
            blocks: None without a window; its three tables are then empty.
        """
        placed = visual.row >= 0
        rows = visual.index[placed]
        is_visual = np.zeros(tokens, dtype=np.bool_)
        is_visual[rows] = True
        others = np.flatnonzero(~is_visual)
        slots = np.empty(tokens, dtype=np.int64)
        slots[others] = np.arange(len(others))
        slots[rows] = len(others) + np.arange(len(rows))
        tables = _window_tables(
            rows, visual.image[placed], visual.row[placed], visual.column[placed], blocks
        )
        return cls(rows, others, slots, *tables)


def token_places(visual: VisualTokens, tokens: int) -> IndexArray:
    """Image, row and column of each token of a sequence: int64 [kept, 3], -1 where it has none."""
    places = np.full((tokens, 3), -1, dtype=np.int64)
    places[visual.index] = np.stack((visual.image, visual.row, visual.column), axis=1)
    return places


def _window_tables(
    token: IndexArray, image: IndexArray, row: IndexArray, column: IndexArray, blocks: Blocks | None
) -> tuple[IndexArray, IndexArray, IndexArray]:
    """`window_queries`, `window_keys` and `window_cells`, of blocks that have any token."""
    if blocks is None:
        empty = np.zeros((0, 0), dtype=np.int64)
        return empty, empty, np.zeros(0, dtype=np.int64)
    tall = int(row.max(initial=0)) // blocks.rows + 1
    numbers, block = np.unique(image * tall + row // blocks.rows, return_inverse=True)
    queries = np.full((len(numbers), blocks.queries), -1, dtype=np.int64)
    keys = np.full((len(numbers), blocks.keys), -1, dtype=np.int64)
    cells = row % blocks.rows * blocks.columns + column
    queries[block, cells] = token
    band = blocks.rows + 2 * blocks.radius
    for at, number in enumerate(numbers):
        # The block's first row of keys lies `radius` above its first row of queries.
        below = row - (number % tall * blocks.rows - blocks.radius)
        seen = (image == number // tall) & (below >= 0) & (below < band)
        keys[at, below[seen] * blocks.columns + column[seen]] = token[seen]
    return queries, keys, block * blocks.queries + cells
