from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.evaluation.draw import by_image, draw
from atp_runtime.evaluation.keys.exact_match import ExactMatch
from atp_runtime.evaluation.question import Question


def question(name: str, image: str = "a.png", group: str = "") -> Question:
    return Question(name, "?", (Path(image),), ExactMatch("x"), group=group)


HUNDRED = [question(str(number)) for number in range(100)]


def test_all_are_asked_when_there_is_no_limit() -> None:
    assert draw(HUNDRED, None, 0) == draw(HUNDRED, 100, 0) == draw(HUNDRED, 500, 3) == HUNDRED


@given(st.integers(1, 100), st.integers(0, 5))
def test_sample_keeps_the_order_and_is_the_same_again(limit: int, seed: int) -> None:
    drawn = draw(HUNDRED, limit, seed)
    assert drawn == draw(HUNDRED, limit, seed)
    assert drawn == [it for it in HUNDRED if it in drawn]
    assert len(drawn) == limit


def test_sample_is_another_when_the_seed_is() -> None:
    assert draw(HUNDRED, 30, 0) != draw(HUNDRED, 30, 1)


def test_larger_sample_has_the_smaller_one() -> None:
    smaller, larger = ({it.id for it in draw(HUNDRED, limit, 0)} for limit in (20, 50))
    assert smaller < larger


def test_sample_comes_from_everywhere() -> None:
    numbers = [int(it.id) for it in draw(HUNDRED, 40, 0)]
    assert all(any(it // 25 == quarter for it in numbers) for quarter in range(4))


def test_questions_that_count_together_are_drawn_together() -> None:
    rotated = [question(f"{n}-{r}", group=str(n)) for r in range(4) for n in range(10)]
    drawn = draw(rotated, 3, 0)
    assert len(drawn) == 12
    assert len({it.group for it in drawn}) == 3


@given(st.lists(st.sampled_from("abc"), max_size=20))
def test_each_image_comes_once_and_questions_keep_their_order(images: list[str]) -> None:
    asked = [question(str(number), image) for number, image in enumerate(images)]
    ordered = by_image(asked)
    changes = sum(a.images != b.images for a, b in pairwise(ordered))
    assert changes == max(len(set(images)) - 1, 0)
    for image in set(images):
        mine = [it for it in asked if it.images == (Path(image),)]
        assert [it for it in ordered if it in mine] == mine
