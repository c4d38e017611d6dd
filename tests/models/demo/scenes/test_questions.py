"""Answers are checked against a reading of the questions that shares no code with the asking."""

import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_models.demo.scenes.layout import SIDE, Item, Scene, make_scene
from atp_models.demo.scenes.questions import KINDS, Question, questions
from atp_models.demo.scenes.vocabulary import NAMES, countable, plural

numbers = st.integers(0, 1_000_000)
splits = st.integers(0, 3)

THIRD, TWO_THIRDS = SIDE / 3, 2 * SIDE / 3
NOUN = f"({'|'.join(NAMES)})"
BOARD = [
    ["top left", "top", "top right"],
    ["left", "centre", "right"],
    ["bottom left", "bottom", "bottom right"],
]


def cell(item: Item) -> str:
    # A centre on a line belongs to the cell right of it or below.
    row = (item.y >= THIRD) + (item.y >= TWO_THIRDS)
    column = (item.x >= THIRD) + (item.x >= TWO_THIRDS)
    return BOARD[row][column]


def only(items: list[Item]) -> Item:
    (item,) = items
    return item


def named(scene: Scene, noun: str) -> Item:
    return only([item for item in scene.items if item.picture.name == noun])


def yes_or_no(truth: bool) -> str:
    return "yes" if truth else "no"


READINGS: dict[str, Callable[..., str]] = {
    r"What is (?:at|in) the ([a-z ]+)\?": lambda scene, place: (
        only([item for item in scene.items if cell(item) == place]).picture.name
    ),
    rf"Where is the {NOUN}\?": lambda scene, a: cell(named(scene, a)),
    rf"(?:Is|Are) there (?:an? )?{NOUN}\?": lambda scene, a: yes_or_no(
        any(item.picture.name == a for item in scene.items)
    ),
    r"How many ([a-z]+) are there\?": lambda scene, several: str(
        sum(plural(item.picture.name) == several for item in scene.items)
    ),
    rf"What colour is the {NOUN}\?": lambda scene, a: named(scene, a).picture.colour,
    rf"Is the {NOUN} to the left of the {NOUN}\?": lambda scene, a, b: yes_or_no(
        named(scene, a).x < named(scene, b).x
    ),
    rf"Is the {NOUN} above the {NOUN}\?": lambda scene, a, b: yes_or_no(
        named(scene, a).y < named(scene, b).y
    ),
    rf"Which is larger, the {NOUN} or the {NOUN}\?": lambda scene, a, b: (
        max((named(scene, a), named(scene, b)), key=lambda item: item.size).picture.name
    ),
}


def read(question: Question, scene: Scene) -> str:
    """The answer, from the words of the question and where the pictures lie."""
    (answer,) = (
        reading(scene, *found.groups())
        for pattern, reading in READINGS.items()
        if (found := re.fullmatch(pattern, question.text))
    )
    return answer


@settings(deadline=None)
@given(splits, numbers)
def test_every_answer_is_what_one_reads_off_the_scene(split: int, number: int) -> None:
    scene = make_scene(split, number)
    for question in questions(scene, 100):
        assert read(question, scene) == question.answer, question


@settings(deadline=None)
@given(splits, numbers, st.integers(1, 5))
def test_no_kind_is_asked_more_often_than_allowed_and_nothing_twice(
    split: int, number: int, most: int
) -> None:
    asked = questions(make_scene(split, number), most)
    assert set(Counter(question.kind for question in asked)) <= set(KINDS)
    assert max(Counter(question.kind for question in asked).values()) <= most
    assert len({question.text for question in asked}) == len(asked)


@settings(deadline=None)
@given(splits, numbers)
def test_the_same_scene_is_asked_the_same(split: int, number: int) -> None:
    scene = make_scene(split, number)
    assert questions(scene, 2) == questions(scene, 2)


@settings(deadline=None)
@given(splits, numbers)
def test_nothing_is_asked_that_needs_a_ruler(split: int, number: int) -> None:
    scene = make_scene(split, number)
    of_name = {item.picture.name: item for item in scene.items}
    for question in questions(scene, 100):
        nouns = [of_name[n] for n in re.findall(rf"\b{NOUN}\b", question.text) if n in of_name]
        if question.kind == "where":
            lines = [abs(v - line) for v in (nouns[0].x, nouns[0].y) for line in (112, 224)]
            assert min(lines) >= 10
        elif question.kind == "left":
            assert abs(nouns[0].x - nouns[1].x) >= 36
        elif question.kind == "above":
            assert abs(nouns[0].y - nouns[1].y) >= 36
        elif question.kind == "larger":
            small, large = sorted(item.size for item in nouns)
            assert large >= 1.3 * small
        elif question.kind == "what":
            place = question.text.removeprefix("What is ")[7:-1].split()
            top = 224 if "bottom" in place else 0 if "top" in place else 112
            left = 224 if "right" in place else 0 if "left" in place else 112
            (asked,) = (i for i in scene.items if 0 <= i.x - left < 112 and 0 <= i.y - top < 112)
            for other in (item for item in scene.items if item is not asked):
                deep = [
                    min(v + other.size / 2, first + 112) - max(v - other.size / 2, first)
                    for v, first in ((other.x, left), (other.y, top))
                ]
                assert min(deep) <= other.size / 4


@settings(deadline=None)
@given(splits, numbers)
def test_counting_is_asked_of_countable_nouns_that_are_there(split: int, number: int) -> None:
    for question in questions(make_scene(split, number), 100):
        if question.kind == "count":
            assert 1 <= int(question.answer) <= 4
            assert question.text in {
                f"How many {plural(n)} are there?" for n in NAMES if countable(n)
            }


@pytest.fixture(scope="module")
def asked() -> dict[str, list[Question]]:
    by_kind: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    for number in range(1500):
        for question in questions(make_scene(0, number), 2):
            by_kind[question.kind].append(question)
    return by_kind


def test_there_are_eight_kinds_and_none_is_rare(asked: dict[str, list[Question]]) -> None:
    assert len(KINDS) == 8
    assert min(len(questions) for questions in asked.values()) >= 1500 / 2


@pytest.mark.parametrize("kind", ["exists", "left", "above"])
def test_yes_is_as_frequent_as_no(asked: dict[str, list[Question]], kind: str) -> None:
    yes = sum(question.answer == "yes" for question in asked[kind]) / len(asked[kind])
    assert 0.46 < yes < 0.54


def test_the_larger_is_as_often_named_first_as_second(asked: dict[str, list[Question]]) -> None:
    first = sum(f"larger, the {q.answer} or" in q.text for q in asked["larger"])
    assert 0.46 < first / len(asked["larger"]) < 0.54


@pytest.mark.parametrize(
    ("kind", "answers", "largest_share"),
    [
        ("what", len(NAMES), 0.10),
        ("where", 9, 0.20),
        ("count", 4, 0.45),
        ("colour", 9, 0.25),
    ],
)
def test_open_questions_have_many_answers_and_none_is_a_safe_guess(
    asked: dict[str, list[Question]], kind: str, answers: int, largest_share: float
) -> None:
    given_answers = Counter(question.answer for question in asked[kind])
    assert len(given_answers) == answers
    assert max(given_answers.values()) < largest_share * len(asked[kind])


def test_existence_of_no_noun_can_be_guessed_from_its_name_alone(
    asked: dict[str, list[Question]],
) -> None:
    seen: dict[str, Counter[str]] = {}
    for question in asked["exists"]:
        seen.setdefault(question.text, Counter())[question.answer] += 1
    shares = [c["yes"] / c.total() for c in seen.values() if c.total() >= 30]
    assert len(shares) > 10
    assert min(shares) > 0.15
    assert max(shares) < 0.85
