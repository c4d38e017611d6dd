import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.evaluation.keys.multiple_choice import MultipleChoice

COLOURS = MultipleChoice(("red", "blue", "light blue", "I do not know"), "B")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" b ", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B)", "B"),
        ("B. blue", "B"),
        ("(C) light blue", "C"),
        ("A: because it is warm", "A"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("answer: C", "C"),
        ("I choose option B here", "B"),
        ("It must be (D), I think", "D"),
    ],
)
def test_letter_is_found(answer: str, letter: str) -> None:
    assert COLOURS.read(answer) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Red.", "A"),
        ("light blue", "C"),
        ("I do not know", "D"),
        ("It is red", "A"),
        ("The sky is red today", "A"),
    ],
)
def test_option_is_found_by_its_text_when_there_is_no_letter(answer: str, letter: str) -> None:
    assert COLOURS.read(answer) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "?",
        "E",
        "(E)",
        "green",
        "A dog",
        "reddish",
        "it is light blue",  # both blue and light blue are in it
        "The answer is A or the answer is B",
        "(A) or (B)",
    ],
)
def test_answer_is_wrong_and_read_as_nothing_when_it_names_no_option(answer: str) -> None:
    mark = COLOURS.mark(answer)
    assert (mark.read, mark.score) == (None, 0)


def test_score_says_whether_the_letter_is_right() -> None:
    assert (COLOURS.mark("B").score, COLOURS.mark("C").score) == (1, 0)


def test_answer_has_no_score_when_the_truth_is_not_known() -> None:
    mark = MultipleChoice(("red", "blue"), None).mark("B")
    assert (mark.read, mark.score) == ("B", None)


@given(
    st.lists(st.text("ABCxyz", min_size=3), min_size=2, max_size=8, unique_by=str.strip),
    st.data(),
)
def test_every_letter_of_the_options_is_read_in_every_form(options: list[str], data) -> None:
    letter = data.draw(st.sampled_from("ABCDEFGH"[: len(options)]))
    form = data.draw(st.sampled_from(["{}", "{}.", "({})", "The answer is {}.", "{}. {}"]))
    text = options["ABCDEFGH".index(letter)]
    assert MultipleChoice(tuple(options), letter).mark(form.format(letter, text)).score == 1
