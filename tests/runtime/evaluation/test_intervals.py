import math
from statistics import fmean, stdev

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from atp_runtime.evaluation.intervals import Z, mean_difference, mean_score

SHARES = st.floats(0, 1, allow_subnormal=False)


def test_quantile_leaves_two_and_a_half_percent_on_either_side() -> None:
    assert 0.5 * (1 + math.erf(Z / math.sqrt(2))) == pytest.approx(0.975)


@given(st.integers(1, 400), st.data())
def test_ends_of_wilsons_interval_solve_its_equation(count: int, data) -> None:
    right = data.draw(st.integers(0, count))
    found = mean_score([1.0] * right + [0.0] * (count - right))
    share = right / count
    # Wilson's: the p for which |share - p| is z standard deviations of a mean under p.
    for end in (found.low, found.high):
        assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / count), abs=1e-9)


@given(st.lists(SHARES, min_size=1, max_size=60))
def test_interval_holds_the_mean_and_stays_within_0_and_1(scores: list[float]) -> None:
    found = mean_score(scores)
    assert found.mean == fmean(scores)
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_interval_is_the_normal_one_when_scores_are_fractions() -> None:
    scores = [0.3, 0.6, 0.9, 0.6, 0.3, 0.9]
    half = 1.959964 * stdev(scores) / math.sqrt(6)
    found = mean_score(scores)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half))


def test_interval_of_differences_counts_only_what_changed() -> None:
    # 3 better, 1 worse of 100: mean 0.02, variance (4 - 100 * 0.02 ** 2) / 99.
    differences = [1.0] * 3 + [-1.0] + [0.0] * 96
    found = mean_difference(differences)
    half = 1.959964 * math.sqrt((4 - 0.04) / 99 / 100)
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, 0.02 - half, 0.02 + half))


@given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=40))
def test_difference_changes_its_sign_when_the_runs_are_swapped(pairs: list) -> None:
    assume(len({b - a for a, b in pairs}) > 1)
    found = mean_difference([b - a for a, b in pairs])
    swapped = mean_difference([a - b for a, b in pairs])
    assert (found.mean, found.low, found.high) == pytest.approx(
        (-swapped.mean, -swapped.high, -swapped.low)
    )


def test_one_question_says_nothing() -> None:
    assert (mean_difference([0.0]).low, mean_difference([0.0]).high) == (-1, 1)
    assert (mean_score([0.4]).low, mean_score([0.4]).high) == (0, 1)
