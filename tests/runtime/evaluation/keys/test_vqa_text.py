"""The rules of the VQA challenge's evaluation page, each with examples worked out by hand."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.evaluation.keys.vqa_text import normalised


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two Dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("the man and a dog", "man and dog"),
        ("An Apple", "apple"),
        ("theatre", "theatre"),
        ("dont", "don't"),
        ("shouldnt've", "shouldn't've"),
        ("shouldn'tve", "shouldn't've"),
        ("don't", "don't"),
        ("oclock", "o'clock"),
        ("twas", "'twas"),
        ("im", "im"),  # the challenge's table has these with a capital I, which never comes
    ],
)
def test_words_are_made_equal(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("red.", "red"),
        ("U.S.", "us"),
        ("3.5", "3.5"),
        ("blue, green", "blue green"),
        ("blue,green", "blue green"),
        ("t-shirt", "t shirt"),
        ("left -right", "left right"),
        ("what?!", "what"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # a comma in a number makes all punctuation vanish
        ("50%", "50%"),
        ("10:30", "10:30"),
        ("new\nline\ttab", "new line tab"),
    ],
)
def test_punctuation_goes_or_becomes_a_space(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


@given(st.text(string.ascii_letters + string.digits + "',. "))
def test_case_makes_no_difference(text: str) -> None:
    assert normalised(text.lower()) == normalised(text.upper()) == normalised(text)


@given(st.lists(st.sampled_from(["dog", "two", "the", "dont", "x-y", "1,0", "a."])))
def test_spaces_make_no_difference_between_words(words: list[str]) -> None:
    assert normalised("  ".join(words)) == normalised("\n" + " ".join(words) + " ")
