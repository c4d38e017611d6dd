"""Where the pictures of a scene lie: everything about it but its pixels.

Every draw of a random number counts: one more or less, and all scenes are others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atp_models.demo.scenes.vocabulary import COLOURED, PLAIN, Picture, countable

SIDE = 336
"""Pixels on each side of a scene."""
MOST = 12
"""Pictures in the fullest scenes."""
BACKGROUNDS = ("plain", "textured", "cluttered")
_PLAIN_BY_NAME = {picture.name: picture for picture in PLAIN}
_COLOURED_SHARE = 0.25
_LARGEST_GROUP = 4
_GAP = 2
_ATTEMPTS = 200


@dataclass(frozen=True)
class Item:
    """A picture in its place.

    Attributes:
        picture: What is shown.
        x: Its centre, pixels from the left.
        y: Its centre, pixels from the top.
        size: Its longer side, pixels.
    """

    picture: Picture
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """What is to be drawn.

    Attributes:
        seed: The numbers that made it; its drawing and its questions draw from them, too.
        background: One of `BACKGROUNDS`.
        items: One to `MOST`, their squares apart from each other and inside the scene.
    """

    seed: tuple[int, int]
    background: str
    items: tuple[Item, ...]


def make_scene(split: int, number: int) -> Scene:
    """The scene `number` of a split, from 0; the same numbers make the same scene.

    One noun of a scene may be there up to four times (hearts, circles, squares and books in any
    of their colours), all others once. Every split has random streams of its own.
    """
    rng = np.random.default_rng((split, number))
    pictures = _choose_pictures(rng, int(rng.integers(1, MOST + 1)))
    items: list[Item] = []
    for picture in pictures:
        item = _place(rng, picture, items, len(pictures))
        if item is not None:
            items.append(item)
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    return Scene((split, number), background, tuple(items))


def _choose_pictures(rng: np.random.Generator, count: int) -> list[Picture]:
    coloured = rng.random(count) < _COLOURED_SHARE
    plain = [str(name) for name in rng.permutation(list(_PLAIN_BY_NAME))]
    shapes = [str(name) for name in rng.permutation(list(COLOURED))]
    nouns = [shapes.pop() if c and shapes else plain.pop() for c in coloured]
    group = int(rng.integers(1, _LARGEST_GROUP + 1))
    if countable(nouns[0]):
        nouns[1:group] = [nouns[0]] * (min(group, count) - 1)
    pictures = [_picture(rng, noun) for noun in nouns]
    # Full scenes run out of space for the last ones: shuffled, so that it hits any noun.
    return [pictures[i] for i in rng.permutation(count)]


def _picture(rng: np.random.Generator, noun: str) -> Picture:
    if noun in COLOURED:
        return COLOURED[noun][int(rng.integers(len(COLOURED[noun])))]
    return _PLAIN_BY_NAME[noun]


def _place(
    rng: np.random.Generator, picture: Picture, others: list[Item], count: int
) -> Item | None:
    smallest, largest = (60, 140) if count <= 4 else (48, 110) if count <= 8 else (42, 80)
    for attempt in range(_ATTEMPTS):
        # The longer a place is sought, the smaller the picture.
        most = max(smallest, round(largest * (1 - attempt / _ATTEMPTS)))
        size = int(rng.integers(smallest, most + 1))
        x, y = (int(v) for v in rng.integers(size // 2, SIDE - size // 2, 2))
        if all(_apart(x, y, size, other) for other in others):
            return Item(picture, x, y, size)
    return None


def _apart(x: int, y: int, size: int, other: Item) -> bool:
    reach = (size + other.size) / 2 + _GAP
    return abs(x - other.x) >= reach or abs(y - other.y) >= reach
