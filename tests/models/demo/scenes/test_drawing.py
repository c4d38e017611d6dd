import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atp_models.demo.scenes.artwork import Artwork
from atp_models.demo.scenes.drawing import draw
from atp_models.demo.scenes.layout import BACKGROUNDS, SIDE, Scene, make_scene
from atp_models.demo.scenes.vocabulary import PICTURES

# As the fixture `square_artwork` paints them; red without blue is no background.
PAINT = {picture: (255, 2 * number, 0) for number, picture in enumerate(PICTURES)}


@settings(max_examples=40, deadline=None)
@given(split=st.integers(0, 3), number=st.integers(0, 1_000_000))
def test_every_picture_lies_where_the_layout_has_it(
    square_artwork: Artwork, split: int, number: int
) -> None:
    scene = make_scene(split, number)
    pixels = np.asarray(draw(scene, square_artwork))
    assert pixels.shape == (SIDE, SIDE, 3)
    for item in scene.items:
        left, top = item.x - item.size // 2, item.y - item.size // 2
        square = pixels[top : top + item.size, left : left + item.size]
        assert square.shape == (item.size, item.size, 3)
        assert (square == PAINT[item.picture]).all()
    painted = (pixels[..., 0] == 255) & (pixels[..., 2] == 0)
    assert painted.sum() == sum(item.size**2 for item in scene.items)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_same_scene_gives_the_same_pixels_and_another_seed_others(
    square_artwork: Artwork, background: str
) -> None:
    first, again, other = (
        draw(Scene((0, seed), background, ()), square_artwork).tobytes() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_only_plain_backgrounds_are_of_one_colour(square_artwork: Artwork) -> None:
    colours = {}
    for background in BACKGROUNDS:
        image = draw(Scene((0, 3), background, ()), square_artwork)
        colours[background] = len(image.getcolors(SIDE * SIDE))
    assert colours["plain"] == 1
    assert 5 < colours["cluttered"] < 100
    assert colours["textured"] > 1000


def test_the_background_shows_through_transparent_artwork() -> None:
    scene = make_scene(0, 0)
    clear = Artwork({p.code: Image.new("RGBA", (8, 8)) for p in PICTURES})
    empty = Scene(scene.seed, scene.background, ())
    assert draw(scene, clear).tobytes() == draw(empty, clear).tobytes()
