"""Tables of structured segments against the places they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_runtime.selection import VisualTokens
from atp_runtime.structure_rows import Blocks, StructureRows


@st.composite
def sequences(draw: st.DrawFn) -> tuple[VisualTokens, int, tuple[int, int], int]:
    """Survivors of up to two images among text, the grid, and a window."""
    grid = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    places = [(image, *place) for image in range(2) for place in np.ndindex(*grid)]
    kept = draw(st.lists(st.sampled_from(places), unique=True, max_size=40).map(sorted))
    classes = draw(st.integers(0, 2))  # features without a place
    visual = np.array([(0, -1, -1)] * classes + kept, dtype=np.int64).reshape(-1, 3)
    tokens = len(visual) + draw(st.integers(1, 9))
    index = np.sort(np.random.default_rng(0).permutation(tokens)[: len(visual)])
    window = draw(st.sampled_from([1, 3, 5, 9]))
    return VisualTokens(index.astype(np.int64), *visual.T), tokens, grid, window


@settings(max_examples=200, deadline=None)
@given(sequences())
def test_blocks_show_each_token_all_of_its_neighbours_and_where_it_is(
    drawn: tuple[VisualTokens, int, tuple[int, int], int],
) -> None:
    visual, tokens, grid, window = drawn
    blocks = Blocks.of(window, grid)

    rows = StructureRows.of(visual, tokens, blocks)

    places = dict(
        zip(visual.index.tolist(), zip(visual.image, visual.row, visual.column, strict=True),
            strict=True)
    )  # fmt: skip
    assert rows.window_queries.shape[1:] == (blocks.queries,)
    assert rows.window_keys.shape == (len(rows.window_queries), blocks.keys)
    asked = rows.window_queries.flatten()[rows.window_cells]
    assert asked.tolist() == rows.visual_rows.tolist()
    for token, cell in zip(rows.visual_rows.tolist(), rows.window_cells.tolist(), strict=True):
        block, query = divmod(cell, blocks.queries)
        seen = rows.window_keys[block]
        near = [
            int(other)
            for place, other in enumerate(seen)
            if other >= 0 and is_near(query, place, blocks)
        ]
        image, row, column = places[token]
        expected = [
            other
            for other, (its, r, c) in places.items()
            if r >= 0 and its == image and max(abs(r - row), abs(c - column)) <= window // 2
        ]
        assert sorted(near) == sorted(expected)


def is_near(query: int, key: int, blocks: Blocks) -> bool:
    """By where a block's places lie: its keys begin `radius` rows above its queries."""
    down = key // blocks.columns - blocks.radius - query // blocks.columns
    return max(abs(down), abs(key % blocks.columns - query % blocks.columns)) <= blocks.radius


@given(sequences())
def test_slots_undo_the_parting_of_the_rows(
    drawn: tuple[VisualTokens, int, tuple[int, int], int],
) -> None:
    visual, tokens, _, _ = drawn

    rows = StructureRows.of(visual, tokens, None)

    parted = np.concatenate((rows.other_rows, rows.visual_rows))
    assert parted[rows.row_slots].tolist() == list(range(tokens))
    assert rows.visual_rows.tolist() == visual.index[visual.row >= 0].tolist()
    assert rows.window_queries.size == rows.window_keys.size == rows.window_cells.size == 0


def test_text_has_no_blocks() -> None:
    none = np.zeros(0, dtype=np.int64)

    rows = StructureRows.of(VisualTokens(none, none, none, none), 3, Blocks.of(5, (24, 24)))

    assert rows.other_rows.tolist() == rows.row_slots.tolist() == [0, 1, 2]
    assert rows.window_queries.shape == (0, 96)
    assert rows.window_keys.shape == (0, 192)
