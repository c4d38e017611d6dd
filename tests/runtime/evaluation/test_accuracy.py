import pytest

from atp_runtime.evaluation.accuracy import accuracies, unit_scores
from atp_runtime.evaluation.intervals import mean_score


def test_all_comes_first_and_then_each_kind_by_name(answered) -> None:
    answers = [
        answered("1", kind="what", score=1.0),
        answered("2", kind="count", score=0.0),
        answered("3", kind="what", score=0.0),
    ]
    found = accuracies(answers)
    assert [(it.kind, it.count, it.score.mean) for it in found] == [
        ("all", 3, pytest.approx(1 / 3)),
        ("count", 1, 0),
        ("what", 2, 0.5),
    ]
    assert found[2].score == mean_score([1.0, 0.0])


def test_only_all_is_there_when_the_data_tells_no_kinds(answered) -> None:
    assert [it.kind for it in accuracies([answered("1"), answered("2")])] == ["all"]


def test_nothing_is_scored_when_no_truth_is_known(answered) -> None:
    unknown = answered("1", truth=None, score=None)
    assert accuracies([unknown]) == ()
    assert accuracies([unknown, answered("2")])[0].count == 1


def test_group_counts_once_and_is_right_when_all_of_it_is(answered) -> None:
    answers = [
        answered("3", group="3", score=1.0),
        answered("1000003", group="3", score=1.0),
        answered("4", group="4", score=1.0),
        answered("1000004", group="4", score=0.0),
    ]
    assert unit_scores(answers) == {"3": 1, "4": 0}
    (found,) = accuracies(answers)
    assert (found.count, found.score.mean, found.constant) == (2, 0.5, None)


def test_constant_answer_is_the_commonest_truth_of_the_kind(answered) -> None:
    truths = ["red", "Red.", "blue", "green", "red"]
    answers = [answered(str(n), truth=it, score=0.0) for n, it in enumerate(truths)]
    assert accuracies(answers)[0].constant == pytest.approx(3 / 5)


def test_no_constant_answer_is_told_when_scores_are_fractions(answered) -> None:
    assert accuracies([answered("1", score=0.3)])[0].constant is None


def test_answers_that_were_read_as_nothing_are_counted(answered) -> None:
    answers = [answered("1", read=None, score=0.0), answered("2", read="A"), answered("3")]
    assert accuracies(answers)[0].unread == 1
