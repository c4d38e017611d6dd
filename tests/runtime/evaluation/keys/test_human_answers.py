from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.evaluation.keys.human_answers import HumanAnswers

ANSWERS = st.lists(st.sampled_from(["yes", "no", "2", "dog"]), min_size=10, max_size=10)


@pytest.mark.parametrize(
    ("people", "score"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_score_rises_with_the_people_who_agree(people: int, score: float) -> None:
    # Of ten, n agree. Left out one by one, n of them leave n - 1 that agree, the others n:
    # (n min(1, (n-1)/3) + (10-n) min(1, n/3)) / 10.
    key = HumanAnswers(("red",) * people + ("blue",) * (10 - people))
    assert key.mark("red").score == pytest.approx(score)


@given(ANSWERS, st.sampled_from(["yes", "no", "2", "dog", "cat"]))
def test_score_is_the_mean_over_all_subsets_of_nine(answers: list[str], answer: str) -> None:
    expected = fmean(min(nine.count(answer) / 3, 1) for nine in combinations(answers, 9))
    assert HumanAnswers(tuple(answers)).mark(answer).score == pytest.approx(expected)


@given(ANSWERS, st.randoms())
def test_order_of_the_people_makes_no_difference(answers: list[str], random) -> None:
    shuffled = answers[:]
    random.shuffle(shuffled)
    for answer in ("yes", "2"):
        assert HumanAnswers(tuple(answers)).mark(answer) == HumanAnswers(tuple(shuffled)).mark(
            answer
        )


def test_wordings_are_made_equal_on_both_sides() -> None:
    assert HumanAnswers(("two dogs",) * 10).mark("The 2 Dogs.").score == 1


def test_truth_is_the_commonest_answer() -> None:
    assert HumanAnswers(("a cat", "dog", "Dog")).truth == "dog"


def test_answer_has_no_score_when_nobody_was_asked() -> None:
    key = HumanAnswers(())
    assert (key.truth, key.mark("Red.").read, key.mark("Red.").score) == (None, "red", None)
