import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_runtime.evaluation.baselines import KeepChosen, even_grid, random_tokens, uniform_tokens
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection, VisualTokens

GRIDS = st.tuples(st.integers(1, 24), st.integers(1, 24))
POINT = PruningPoint(4, "atp", {})


def tokens(rows: int, columns: int, images: int = 1, before: int = 3) -> VisualTokens:
    row, column = np.divmod(np.arange(rows * columns), columns)
    count = images * rows * columns
    return VisualTokens(
        before + np.arange(count),
        np.repeat(np.arange(images), rows * columns),
        np.tile(row, images),
        np.tile(column, images),
    )


def chosen(select: KeepChosen, visual: VisualTokens, point: PruningPoint = POINT) -> Selection:
    none = np.zeros(0, dtype=np.float32)
    return select(point, none, none, True, visual)


@given(GRIDS, st.data())
def test_even_grid_has_exactly_so_many_different_patches(grid, data) -> None:
    rows, columns = grid
    count = data.draw(st.integers(0, rows * columns))
    places = even_grid(rows, columns, count)
    assert len(set(places)) == len(places) == count
    assert all(0 <= row < rows and 0 <= column < columns for row, column in places)


def test_even_grid_is_the_expected_one_when_the_numbers_are_round() -> None:
    # 4 of 8 x 8 are the middles of the quarters; 16 of them those of the sixteenths.
    assert even_grid(8, 8, 4) == [(2, 2), (2, 6), (6, 2), (6, 6)]
    assert even_grid(8, 8, 16) == [(r, c) for r in (1, 3, 5, 7) for c in (1, 3, 5, 7)]
    assert even_grid(3, 3, 9) == [(r, c) for r in range(3) for c in range(3)]
    assert even_grid(1, 9, 3) == [(0, 1), (0, 4), (0, 7)]


@pytest.mark.parametrize("count", [20, 34, 70, 120, 144, 300])
def test_even_grid_leaves_no_large_hole(count: int) -> None:
    places = np.array(even_grid(24, 24, count))
    every = np.stack(np.divmod(np.arange(576), 24), axis=1)
    distances = np.abs(every[:, None] - places[None]).max(axis=2).min(axis=1)
    # A square of the mean area that falls to one token has this half side.
    assert distances.max() <= math.ceil(math.sqrt(576 / count) / 2) + 1


@given(GRIDS, st.data())
@settings(deadline=None)
def test_uniform_tokens_are_the_even_grid_when_all_are_there(grid, data) -> None:
    count = data.draw(st.integers(0, grid[0] * grid[1]))
    visual = tokens(*grid)
    kept = uniform_tokens(*grid)(visual.row, visual.column, count)
    found = zip(visual.row[kept].tolist(), visual.column[kept].tolist(), strict=True)
    assert set(found) == set(even_grid(*grid, count))


@given(st.sets(st.integers(0, 63), min_size=1), st.data())
@settings(deadline=None)
def test_uniform_tokens_are_as_many_as_asked_among_any_survivors(left: set[int], data) -> None:
    places = np.array(sorted(left))
    count = data.draw(st.integers(0, len(places)))
    assert uniform_tokens(8, 8)(places // 8, places % 8, count).sum() == count


def test_uniform_tokens_without_a_place_are_dropped_first() -> None:
    row, column = np.array([-1, 0, 1]), np.array([-1, 0, 1])
    assert uniform_tokens(2, 2)(row, column, 2).tolist() == [False, True, True]


def test_random_tokens_are_others_for_another_generator_and_the_same_for_the_same() -> None:
    def kept(seed: int) -> list[int]:
        choose = random_tokens(np.random.default_rng(seed))
        return np.flatnonzero(choose(np.zeros(100), np.zeros(100), 10)).tolist()

    assert kept(1) == kept(1) != kept(2)
    assert len(kept(1)) == 10


def test_random_tokens_are_all_equally_likely() -> None:
    choose = random_tokens(np.random.default_rng(0))
    times = sum(choose(np.zeros(8), np.zeros(8), 2).astype(int) for _ in range(4000))
    # 1000 each on average; five standard deviations of a binomial count.
    assert np.abs(times - 1000).max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


@given(st.integers(0, 40), st.integers(1, 3), st.integers(0, 2**32))
@settings(deadline=None)
def test_each_image_keeps_so_many_tokens_as_the_point_says(
    keep: int, images: int, seed: int
) -> None:
    visual = tokens(5, 6, images)
    for choose in (random_tokens(np.random.default_rng(seed)), uniform_tokens(5, 6)):
        kept = chosen(KeepChosen({4: keep, 9: 1}, choose), visual).kept
        assert [kept[visual.image == it].sum() for it in range(images)] == [min(keep, 30)] * images


def test_later_point_chooses_among_the_survivors() -> None:
    select = KeepChosen({4: 12, 9: 5}, uniform_tokens(6, 6))
    visual = tokens(6, 6)
    left = visual.survivors(chosen(select, visual).kept)
    kept = chosen(select, left, PruningPoint(9, "atp", {})).kept
    assert (len(left), kept.sum()) == (12, 5)


def test_nothing_is_chosen_when_there_are_no_tokens() -> None:
    assert len(chosen(KeepChosen({4: 3}, uniform_tokens(2, 2)), tokens(0, 1)).kept) == 0
