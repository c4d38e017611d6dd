"""Drawing scenes: a background, and every picture centred where the layout has it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from atp_models.demo.scenes.artwork import Artwork
from atp_models.demo.scenes.layout import SIDE, Scene

_DRAWING_STREAM = 7  # apart from the stream that laid the scene out


def draw(scene: Scene, artwork: Artwork) -> Image.Image:
    """The scene, RGB, `SIDE` pixels a side; the same scene and artwork give the same pixels."""
    rng = np.random.default_rng((*scene.seed, _DRAWING_STREAM))
    image = _BACKGROUNDS[scene.background](rng)
    for item in scene.items:
        picture = artwork.at_size(item.picture, item.size)
        place = (item.x - picture.width // 2, item.y - picture.height // 2)
        image.paste(picture, place, picture)
    return image


def _plain(rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), _colour(rng))


def _textured(rng: np.random.Generator) -> Image.Image:
    """Waves between two colours, and noise."""
    first, second = np.array(_colour(rng)), np.array(_colour(rng))
    row, column = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, waves = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 12)
    phase = (row * np.sin(angle) + column * np.cos(angle)) * waves * 2 * np.pi
    share = (0.5 + 0.5 * np.sin(phase))[..., None]
    pixels = first * share + second * (1 - share) + rng.normal(0, 8, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _cluttered(rng: np.random.Generator) -> Image.Image:
    """Lines, boxes and discs in muted colours."""
    image = _plain(rng)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(15, 45))):
        x, y = (int(v) for v in rng.integers(-20, SIDE, 2))
        width, height = (int(v) for v in rng.integers(6, 70, 2))
        box, colour = (x, y, x + width, y + height), _colour(rng)
        match int(rng.integers(3)):
            case 0:
                pen.line(box, fill=colour, width=int(rng.integers(1, 5)))
            case 1:
                pen.rectangle(box, fill=colour)
            case _:
                pen.ellipse(box, fill=colour)
    return image


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """A muted colour: the pictures' own are vivid."""
    grey = rng.uniform(60, 235)
    red, green, blue = (grey + rng.uniform(-35, 35, 3)).clip(0, 255).astype(int).tolist()
    return red, green, blue


_BACKGROUNDS = {"plain": _plain, "textured": _textured, "cluttered": _cluttered}
