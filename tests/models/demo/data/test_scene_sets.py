import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atp_models.demo.data.samples import Sample
from atp_models.demo.data.scene_sets import SCENE_SETS, equal_shares
from atp_models.demo.scenes.captions import captions
from atp_models.demo.scenes.layout import make_scene
from atp_models.demo.scenes.questions import KINDS, questions
from atp_runtime.errors import InputError

# Pinned: other values here mean that no published score of the demo holds any more.
PINNED = {
    "scenes-test": "c043608882810fa542aad419003b7ab9eb41eb5d06a3c72bbd6ec80c935df5e2",
    "scenes-other-style": "50f92d336c5c1753802484f879aef549a6c0b6aeb134dbebc9b1fc2280461a67",
}
NOWHERE = Path("no artwork is needed to ask")


def kinds(samples: list[Sample]) -> Counter[str]:
    return Counter(sample.question.kind for sample in samples)


@settings(deadline=None)
@given(st.integers(0, 500), st.lists(st.integers(0, 100), min_size=1, max_size=10))
def test_equal_shares_are_as_equal_as_possible(total: int, available: list[int]) -> None:
    names = [f"kind {number}" for number in range(len(available))]
    room = dict(zip(names, available, strict=True))
    shares = equal_shares(total, room)
    assert sum(shares.values()) == min(total, sum(available))
    assert all(0 <= shares[name] <= room[name] for name in names)
    largest = max(shares.values())
    for name in names:
        assert shares[name] == room[name] or shares[name] >= largest - 1


@pytest.mark.parametrize("name", ["scenes-test", "scenes-other-style"])
def test_test_sets_have_two_thousand_questions_and_as_many_of_each_kind(name: str) -> None:
    samples = SCENE_SETS[name].samples(NOWHERE)
    assert kinds(samples) == dict.fromkeys(KINDS, 250)


@pytest.mark.parametrize("name", ["scenes-validation", "scenes-test", "scenes-other-style"])
def test_held_out_sets_ask_each_scene_at_most_twice_the_same_kind_in_order(name: str) -> None:
    samples = SCENE_SETS[name].samples(NOWHERE, images=60, questions=240)
    assert kinds(samples) == dict.fromkeys(KINDS, 30)
    assert [s.image for s in samples] == sorted(s.image for s in samples)
    assert max(Counter((s.image, s.question.kind) for s in samples).values()) <= 2
    assert len({s.image for s in samples}) > 40
    split = SCENE_SETS[name].split
    for sample in samples:
        scene = make_scene(split, sample.image)
        assert sample.question in questions(scene, 2)
        assert sample.objects == len(scene.items)


def test_held_out_sets_are_the_same_every_time() -> None:
    first, again = (
        SCENE_SETS["scenes-test"].samples(NOWHERE, images=30, questions=100) for _ in range(2)
    )
    assert first == again


@pytest.mark.parametrize(("name", "pinned"), PINNED.items())
def test_test_sets_are_the_ones_that_published_scores_were_measured_on(
    name: str, pinned: str
) -> None:
    samples = SCENE_SETS[name].samples(NOWHERE)
    lines = [f"{s.image}\t{s.question.text}\t{s.question.answer}" for s in samples]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == pinned


def test_fewer_scenes_alone_mean_fewer_questions() -> None:
    assert len(SCENE_SETS["scenes-test"].samples(NOWHERE, images=3)) < 3 * 2 * len(KINDS) + 1


def test_no_two_sets_share_a_split() -> None:
    splits = [source.split for source in SCENE_SETS.values()]
    assert len(set(splits)) == len(splits)


def test_training_set_asks_everything_of_every_scene_and_captions_it() -> None:
    samples = SCENE_SETS["scenes-train"].samples(NOWHERE, images=20)
    for number in range(20):
        scene = make_scene(0, number)
        asked = [sample.question for sample in samples if sample.image == number]
        assert asked == [*questions(scene, 3), *captions(scene)]
    assert SCENE_SETS["scenes-train"].samples(NOWHERE, images=20, questions=55) == samples[:55]


@pytest.mark.parametrize("name", SCENE_SETS)
def test_more_questions_than_the_scenes_give_are_refused_with_how_many_there_are(name: str) -> None:
    with pytest.raises(InputError, match="1000 questions") as caught:
        SCENE_SETS[name].samples(NOWHERE, images=3, questions=1000)
    there_are = int(caught.value.what.rpartition(" ")[2])
    assert len(SCENE_SETS[name].samples(NOWHERE, images=3, questions=there_are)) == there_are
