"""Whole scenes in words: training tasks that ask for everything at once.

An answer to a question has one or two tokens; of a caption every token teaches something.
"""

from __future__ import annotations

from collections import defaultdict

from atp_models.demo.scenes.layout import Item, Scene
from atp_models.demo.scenes.questions import Question, cell_name, cell_of

SMALL, LARGE = 58, 84
"""Pixels: what is smaller is called small, what is not smaller is called large."""


CAPTIONS = ("describe", "places")
"""Their kinds."""


def captions(scene: Scene) -> list[Question]:
    """Two: every picture with its place, and every place with its pictures."""
    ordered = sorted(scene.items, key=lambda item: (*cell_of(item), item.y, item.x))
    pictures = ", ".join(f"{_described(item)} {cell_name(cell_of(item))}" for item in ordered)
    board: dict[str, list[str]] = defaultdict(list)
    for item in ordered:
        board[cell_name(cell_of(item))].append(_described(item))
    places = "; ".join(f"{cell}: {', '.join(items)}" for cell, items in board.items())
    return [
        Question(CAPTIONS[0], "Describe the pictures.", pictures),
        Question(CAPTIONS[1], "What is where?", places),
    ]


def _described(item: Item) -> str:
    size = "small" if item.size < SMALL else "large" if item.size >= LARGE else None
    return " ".join(filter(None, (size, item.picture.colour, item.picture.name)))
