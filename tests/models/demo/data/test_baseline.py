import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_models.demo.data.baseline import question_only_baseline
from atp_models.demo.scenes.questions import Question

VERY_QUESTION = "most frequent answer to the very question"
KIND = "most frequent answer of the kind"
FIRST, SECOND = "first of the two named", "second of the two named"


def where(noun: str, answer: str) -> Question:
    return Question("where", f"Where is the {noun}?", answer)


def larger(first: str, second: str, answer: str) -> Question:
    return Question("larger", f"Which is larger, the {first} or the {second}?", answer)


def test_a_question_seen_eight_times_gets_its_own_most_frequent_answer() -> None:
    # "top" is the most frequent answer of the kind, yet the moon is mostly at the left.
    training = [where("moon", "left")] * 5 + [where("moon", "top")] * 3 + [where("dog", "top")] * 9
    test = [where("moon", "left"), where("moon", "left"), where("moon", "top"), where("owl", "top")]
    found = question_only_baseline(training, test).kinds["where"]
    assert found.answerers == {KIND: 2 / 4, VERY_QUESTION: 3 / 4}
    assert (found.best, found.accuracy, found.questions) == (VERY_QUESTION, 3 / 4, 4)


def test_a_question_seen_seven_times_gets_the_answer_of_its_kind() -> None:
    training = [where("moon", "left")] * 7 + [where("dog", "top")] * 9
    found = question_only_baseline(training, [where("moon", "left"), where("moon", "top")])
    assert found.kinds["where"].answerers == {KIND: 1 / 2, VERY_QUESTION: 1 / 2}
    assert question_only_baseline(training, [where("moon", "left")]).accuracy == 0


def test_the_larger_of_two_is_guessed_by_its_place_in_the_question() -> None:
    test = [larger("dog", "owl", "owl"), larger("red book", "key", "key"), larger("a", "b", "a")]
    found = question_only_baseline([larger("x", "y", "x")], test).kinds["larger"]
    assert found.answerers == {
        KIND: 0,
        VERY_QUESTION: 0,
        FIRST: pytest.approx(1 / 3),
        SECOND: pytest.approx(2 / 3),
    }
    assert found.best == SECOND


def test_accuracy_over_all_weighs_kinds_by_their_questions() -> None:
    training = [where("moon", "top"), Question("count", "How many?", "1")]
    test = [where("moon", "top"), *[Question("count", "How many?", str(n)) for n in (1, 2, 3)]]
    found = question_only_baseline(training, test)
    assert {kind: score.accuracy for kind, score in found.kinds.items()} == {
        "count": pytest.approx(1 / 3),
        "where": 1,
    }
    assert found.accuracy == pytest.approx(2 / 4)
    assert found.trained_on == 2


answers = st.lists(st.sampled_from("abc"), min_size=1, max_size=30)


@settings(deadline=None)
@given(answers, answers)
def test_no_baseline_beats_the_best_constant_when_all_questions_read_the_same(
    training: list[str], test: list[str]
) -> None:
    def asked(texts: list[str]) -> list[Question]:
        return [Question("kind", "Same?", text) for text in texts]

    found = question_only_baseline(asked(training), asked(test))
    frequent = {a for a in training if training.count(a) == max(map(training.count, training))}
    assert found.accuracy in [pytest.approx(test.count(a) / len(test)) for a in frequent]
