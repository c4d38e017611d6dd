from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_models.demo.scenes.layout import BACKGROUNDS, MOST, SIDE, make_scene
from atp_models.demo.scenes.vocabulary import COLOURED, NAMES

numbers = st.integers(0, 1_000_000)
splits = st.integers(0, 3)


@settings(deadline=None)
@given(splits, numbers)
def test_the_same_numbers_make_the_same_scene(split: int, number: int) -> None:
    assert make_scene(split, number) == make_scene(split, number)


@settings(deadline=None)
@given(splits, numbers)
def test_every_picture_lies_inside_the_scene(split: int, number: int) -> None:
    scene = make_scene(split, number)
    assert 1 <= len(scene.items) <= MOST
    for item in scene.items:
        half = item.size // 2
        assert half <= item.x <= SIDE - half
        assert half <= item.y <= SIDE - half


@settings(deadline=None)
@given(splits, numbers)
def test_no_picture_covers_another(split: int, number: int) -> None:
    for a, b in combinations(make_scene(split, number).items, 2):
        apart = max(abs(a.x - b.x), abs(a.y - b.y))
        assert apart > (a.size + b.size) / 2


@settings(deadline=None)
@given(splits, numbers)
def test_one_noun_at_most_is_there_more_than_once_and_at_most_four_times(
    split: int, number: int
) -> None:
    times = Counter(item.picture.name for item in make_scene(split, number).items)
    repeated = [count for count in times.values() if count > 1]
    assert len(repeated) <= 1
    assert max(times.values()) <= 4


@pytest.fixture(scope="module")
def scenes() -> list:
    return [make_scene(0, number) for number in range(1500)]


def test_every_number_of_pictures_from_one_to_twelve_is_common(scenes: list) -> None:
    sizes = Counter(len(scene.items) for scene in scenes)
    assert set(sizes) == set(range(1, MOST + 1))
    assert min(sizes.values()) > len(scenes) / MOST / 3


def test_every_background_is_as_common_as_the_others(scenes: list) -> None:
    seen = Counter(scene.background for scene in scenes)
    assert set(seen) == set(BACKGROUNDS)
    assert min(seen.values()) > 0.8 * len(scenes) / len(BACKGROUNDS)


def test_every_noun_and_every_colour_of_it_is_shown(scenes: list) -> None:
    shown = Counter(item.picture for scene in scenes for item in scene.items)
    assert {picture.name for picture in shown} == set(NAMES)
    assert {picture for pictures in COLOURED.values() for picture in pictures} <= set(shown)


def test_pictures_come_large_and_small_and_everywhere(scenes: list) -> None:
    items = [item for scene in scenes for item in scene.items]
    assert min(item.size for item in items) < 45
    assert max(item.size for item in items) > 130
    cells = Counter((3 * item.y // SIDE, 3 * item.x // SIDE) for item in items)
    assert len(cells) == 9
    assert min(cells.values()) > 0.05 * len(items)


def test_scenes_of_two_splits_differ(scenes: list) -> None:
    others = [make_scene(split, number) for split in (1, 2, 3) for number in range(500)]
    seen = {(scene.background, scene.items) for scene in scenes}
    assert not any((scene.background, scene.items) in seen for scene in others)
