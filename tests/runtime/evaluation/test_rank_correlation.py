from statistics import correlation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.evaluation.rank_correlation import spearman

VALUES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30)


def rank(value: float, values: list[float]) -> float:
    """One more than those below, plus half of those that tie."""
    return 1 + sum(it < value for it in values) + (values.count(value) - 1) / 2


@given(VALUES)
def test_correlation_is_that_of_the_ranks(pairs: list[tuple[int, int]]) -> None:
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    found = spearman(left, right)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert found is None
    else:
        ranks = [[rank(it, side) for it in side] for side in (left, right)]
        assert found == pytest.approx(correlation(*ranks))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30, unique=True))
def test_correlation_is_one_when_one_side_rises_with_the_other(values: list[float]) -> None:
    ranks = [rank(it, values) for it in values]
    assert spearman(values, ranks) == pytest.approx(1)
    assert spearman(values, [-it for it in ranks]) == pytest.approx(-1)


def test_nothing_is_said_about_a_single_value() -> None:
    assert spearman([1.0], [2.0]) is None
