import pytest

from atp_runtime.evaluation.keys.yes_no import YesNo, read_yes_no


@pytest.mark.parametrize(
    ("answer", "reading"),
    [
        ("Yes", "yes"),
        ("yes, there is.", "yes"),
        ("No", "no"),
        ("No, there is no dog. Yes.", "no"),
        ("Yes, but not a red one", "no"),  # POPE's rule: any no or not
        ("There is not.", "no"),
        ("no!", "no"),
        ("nothing", None),
        ("A dog", None),
        ("", None),
        ("A dog. No.", None),  # only the first sentence counts
    ],
)
def test_first_sentence_is_read(answer: str, reading: str | None) -> None:
    assert read_yes_no(answer) == reading


@pytest.mark.parametrize(
    ("truth", "answer", "score"),
    [("yes", "Yes.", 1), ("yes", "No.", 0), ("no", "no", 1), ("no", "yes", 0)],
)
def test_score_says_whether_the_answer_is_right(truth: str, answer: str, score: float) -> None:
    assert YesNo(truth).mark(answer).score == score


def test_answer_counts_as_yes_but_is_read_as_nothing_when_it_is_neither() -> None:
    assert (YesNo("yes").mark("a dog").score, YesNo("no").mark("a dog").score) == (1, 0)
    assert YesNo("yes").mark("a dog").read is None
