"""Captions say of every picture what can be seen of it, in reading order."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from atp_models.demo.scenes.captions import captions
from atp_models.demo.scenes.layout import Item, Scene, make_scene
from atp_models.demo.scenes.vocabulary import PICTURES

DOG, OWL = (next(p for p in PICTURES if p.name == name) for name in ("dog", "owl"))
BLUE_HEART = next(p for p in PICTURES if (p.name, p.colour) == ("heart", "blue"))
SCENE = Scene(
    (0, 0), "plain", (Item(OWL, 170, 300, 90), Item(BLUE_HEART, 60, 50, 40), Item(DOG, 90, 80, 60))
)


def test_a_description_gives_each_picture_its_size_colour_and_place() -> None:
    description, _ = captions(SCENE)
    assert description.text == "Describe the pictures."
    assert description.answer == "small blue heart top left, dog top left, large owl bottom"


def test_a_board_gives_each_place_its_pictures() -> None:
    _, board = captions(SCENE)
    assert board.text == "What is where?"
    assert board.answer == "top left: small blue heart, dog; bottom: large owl"


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 10_000))
def test_both_captions_name_every_picture(split: int, number: int) -> None:
    scene = make_scene(split, number)
    nouns = Counter(item.picture.name for item in scene.items)
    for caption in captions(scene):
        words = Counter(caption.answer.replace(",", "").replace(";", "").split())
        assert all(words[noun] == count for noun, count in nouns.items())
