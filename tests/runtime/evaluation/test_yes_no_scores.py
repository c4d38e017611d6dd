import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.evaluation.yes_no_scores import yes_no_scores

SAID = st.sampled_from(["Yes", "No", "a dog"])
TRUE = st.sampled_from(["yes", "no"])


def test_numbers_are_those_of_the_confusion_matrix(answered) -> None:
    # 3 true positives, 1 false positive, 2 true negatives, 2 false negatives.
    said = ["Yes", "yes.", "Yes", "Yes", "No", "no", "No", "No"]
    true = ["yes", "yes", "yes", "no", "no", "no", "yes", "yes"]
    pairs = enumerate(zip(said, true, strict=True))
    (found,) = yes_no_scores([answered(str(n), answer=a, truth=b) for n, (a, b) in pairs])
    assert (found.kind, found.count, found.neither) == ("all", 8, 0)
    assert found.accuracy == pytest.approx(5 / 8)
    assert found.precision == pytest.approx(3 / 4)
    assert found.recall == pytest.approx(3 / 5)
    assert found.f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert found.yes_rate == pytest.approx(4 / 8)


def test_answer_that_is_neither_counts_as_yes_and_is_told(answered) -> None:
    answers = [answered("1", answer="a dog", truth="yes"), answered("2", answer="", truth="no")]
    (found,) = yes_no_scores(answers)
    assert (found.accuracy, found.yes_rate, found.neither) == (0.5, 1, 2)


def test_numbers_that_mean_nothing_are_missing(answered) -> None:
    (never,) = yes_no_scores([answered("1", answer="No", truth="no")])
    assert (never.precision, never.recall, never.f1) == (None, None, None)
    (missed,) = yes_no_scores(
        [answered("1", answer="No", truth="yes"), answered("2", answer="Yes", truth="no")]
    )
    assert (missed.precision, missed.recall, missed.f1) == (0, 0, 0)


def test_only_questions_with_such_a_truth_are_counted_by_kind(answered) -> None:
    answers = [
        answered("1", kind="existence", answer="Yes", truth="Yes."),
        answered("2", kind="left of", answer="no", truth="yes"),
        answered("3", kind="what", truth="red"),
    ]
    assert [(it.kind, it.count) for it in yes_no_scores(answers)] == [
        ("all", 2),
        ("existence", 1),
        ("left of", 1),
    ]
    assert yes_no_scores(answers[2:]) == ()


@given(st.lists(st.tuples(SAID, TRUE), min_size=1, max_size=40))
def test_accuracy_is_what_precision_recall_and_rates_leave(answered, pairs) -> None:
    answers = [answered(str(n), answer=a, truth=b) for n, (a, b) in enumerate(pairs)]
    found = yes_no_scores(answers)[0]
    share = sum(truth == "yes" for _, truth in pairs) / len(pairs)
    hits = (found.recall or 0) * share
    assert found.accuracy == pytest.approx(1 - (found.yes_rate - hits) - (share - hits))
