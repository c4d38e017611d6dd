import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.evaluation.keys.exact_match import ExactMatch, normalised


@pytest.mark.parametrize(
    "answer", ["red apple", "Red Apple", " red  apple ", "red apple.", "RED\napple!", "red apple ."]
)
def test_answer_is_right_when_only_case_spaces_or_final_punctuation_differ(answer: str) -> None:
    assert ExactMatch("Red apple.").mark(answer).score == 1


@pytest.mark.parametrize("answer", ["apple", "red apples", "a red apple", "red. apple", ""])
def test_answer_is_wrong_when_it_says_anything_else(answer: str) -> None:
    assert ExactMatch("red apple").mark(answer).score == 0


def test_answer_has_no_score_when_the_truth_is_not_known() -> None:
    mark = ExactMatch(None).mark("Red.")
    assert (mark.read, mark.score) == ("red", None)


@pytest.mark.parametrize("answer", ["", "  \n", "..."])
def test_answer_is_read_as_nothing_when_nothing_is_left_of_it(answer: str) -> None:
    assert ExactMatch("red").mark(answer).read is None


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(st.text())
def test_every_answer_equals_itself(text: str) -> None:
    assert ExactMatch(text).mark(text).score == 1
