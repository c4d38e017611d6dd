"""Questions about a scene, with their answers.

Eight kinds: what is at a place, where is it, is it there, how many, which colour, left of,
above, which is larger. Nothing is asked about a noun that is there twice but its number and
whether it is there, so that "the dog" is always one dog.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from atp_models.demo.scenes.layout import SIDE, Item, Scene
from atp_models.demo.scenes.vocabulary import COLOURED, NAMES, countable, plural, with_article

# Nothing is asked that a ruler would be needed for.
_BORDER = 10  # pixels that a centre keeps from the lines of the three by three board
_APART = 36  # pixels between two centres
_LARGER = 1.3  # ratio of two sizes
_COLOURED_ODDS = 8.0  # of a coloured noun against another's
_REACH = 0.25  # of its side, how far another picture may reach into a cell
_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: One of `KINDS`, or of `atp_models.demo.scenes.captions`.
        text: In English.
        answer: In lower case.
    """

    kind: str
    text: str
    answer: str


def place(item: Item) -> str | None:
    """The item's place on a three by three board: "top left", "centre"; None near its lines."""
    third = SIDE / 3
    cells = []
    for value in (item.y, item.x):
        cell, inside = divmod(value, third)
        near_first = int(cell) > 0 and inside < _BORDER
        near_last = int(cell) < 2 and third - inside < _BORDER
        if near_first or near_last:
            return None
        cells.append(int(cell))
    return cell_name((cells[0], cells[1]))


def _single(scene: Scene) -> list[Item]:
    """The items whose noun is there once."""
    times = Counter(item.picture.name for item in scene.items)
    return [item for item in scene.items if times[item.picture.name] == 1]


def cell_of(item: Item) -> tuple[int, int]:
    """Row and column of the item's centre on a three by three board."""
    return int(item.y * 3 / SIDE), int(item.x * 3 / SIDE)


def cell_name(cell: tuple[int, int]) -> str:
    """What a cell of the board is called."""
    return f"{_ROWS[cell[0]]} {_COLUMNS[cell[1]]}".strip() or "centre"


def _what(scene: Scene, _rng: np.random.Generator) -> list[Question]:
    """Of cells with one centre in them, and little of any other picture."""
    asked = []
    for item in scene.items:
        where = place(item)
        others = [other for other in scene.items if other is not item]
        if where and not any(_reaches_into(cell_of(item), other) for other in others):
            at = f"in the {where}" if where == "centre" else f"at the {where}"
            asked.append(Question("what", f"What is {at}?", item.picture.name))
    return asked


def _reaches_into(cell: tuple[int, int], item: Item) -> bool:
    depth = []
    for number, middle in zip(cell, (item.y, item.x), strict=True):
        first, last = number * SIDE / 3, (number + 1) * SIDE / 3
        near, far = middle - item.size / 2, middle + item.size / 2
        depth.append(min(far, last) - max(near, first))
    return min(depth) > _REACH * item.size


def _where(scene: Scene, _rng: np.random.Generator) -> list[Question]:
    return [
        Question("where", f"Where is the {item.picture.name}?", where)
        for item in _single(scene)
        if (where := place(item))
    ]


def _exists(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Of all nouns that are there, and of as many that are not."""
    there = sorted({item.picture.name for item in scene.items})
    missing = sorted(set(NAMES) - set(there))
    # Coloured nouns are in many scenes: ask for them as often where they are not.
    odds = np.array([_COLOURED_ODDS if name in COLOURED else 1.0 for name in missing])
    absent = rng.choice(missing, len(there), replace=False, p=odds / odds.sum())
    names = [(name, "yes") for name in there] + [(str(name), "no") for name in absent]
    return [
        Question("exists", f"{_is_there(name)} {with_article(name)}?", answer)
        for name, answer in names
    ]


def _is_there(name: str) -> str:
    return "Are there" if name in {"grapes", "scissors"} else "Is there"


def _count(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Of the noun that is there most often; which is once in a quarter of the scenes."""
    times = Counter(i.picture.name for i in scene.items if countable(i.picture.name))
    if not times:
        return []
    name, most = max(times.items(), key=lambda pair: (pair[1], pair[0]))
    if most == 1:
        name = str(rng.choice(sorted(times)))
    return [Question("count", f"How many {plural(name)} are there?", str(most))]


def _colour(scene: Scene, _rng: np.random.Generator) -> list[Question]:
    return [
        Question("colour", f"What colour is the {item.picture.name}?", item.picture.colour)
        for item in _single(scene)
        if item.picture.colour
    ]


def _left(scene: Scene, rng: np.random.Generator) -> list[Question]:
    return _relation("left", "to the left of", lambda a, b: b.x - a.x, scene, rng)


def _above(scene: Scene, rng: np.random.Generator) -> list[Question]:
    return _relation("above", "above", lambda a, b: b.y - a.y, scene, rng)


def _relation(
    kind: str,
    words: str,
    distance: Callable[[Item, Item], int],
    scene: Scene,
    rng: np.random.Generator,
) -> list[Question]:
    """Of each pair far enough apart, in one random order."""
    return [
        Question(
            kind,
            f"Is the {a.picture.name} {words} the {b.picture.name}?",
            "yes" if distance(a, b) > 0 else "no",
        )
        for a, b in _pairs(scene, rng)
        if abs(distance(a, b)) >= _APART
    ]


def _larger(scene: Scene, rng: np.random.Generator) -> list[Question]:
    return [
        Question(
            "larger",
            f"Which is larger, the {a.picture.name} or the {b.picture.name}?",
            (a if a.size > b.size else b).picture.name,
        )
        for a, b in _pairs(scene, rng)
        if max(a.size, b.size) >= _LARGER * min(a.size, b.size)
    ]


def _pairs(scene: Scene, rng: np.random.Generator) -> list[tuple[Item, Item]]:
    ordered = list(permutations(_single(scene), 2))
    chosen = [pair for pair in ordered if pair[0].picture.name < pair[1].picture.name]
    swapped = rng.random(len(chosen)) < 0.5
    return [(b, a) if swap else (a, b) for (a, b), swap in zip(chosen, swapped, strict=True)]


_ASK = {
    "what": _what,
    "where": _where,
    "exists": _exists,
    "count": _count,
    "colour": _colour,
    "left": _left,
    "above": _above,
    "larger": _larger,
}
KINDS = tuple(_ASK)
_QUESTION_STREAM = 11


def questions(scene: Scene, most: int) -> list[Question]:
    """Questions about a scene, at most `most` of each kind, in random order.

    The same scene and number give the same questions; fewer are not always among more.
    """
    rng = np.random.default_rng((*scene.seed, _QUESTION_STREAM))
    asked: list[Question] = []
    for ask in _ASK.values():
        candidates = ask(scene, rng)
        asked += [candidates[i] for i in rng.permutation(len(candidates))[:most]]
    return [asked[i] for i in rng.permutation(len(asked))]
