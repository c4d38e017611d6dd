"""What can be in a scene: nouns, and the code points of the artwork that shows them.

The order of every table is part of the scenes: random choices index into it.
"""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")


@dataclass(frozen=True)
class Picture:
    """One emoji.

    Attributes:
        name: The noun that questions use.
        code: Its code points, hexadecimal, joined by "-"; names the artwork.
        colour: Its colour if the noun comes in several, else None.
    """

    name: str
    code: str
    colour: str | None = None


_SINGLE = {
    # animals
    "dog": "1f436", "cat": "1f431", "rabbit": "1f430", "fox": "1f98a", "panda": "1f43c",
    "lion": "1f981", "cow": "1f42e", "pig": "1f437", "frog": "1f438", "monkey": "1f435",
    "penguin": "1f427", "owl": "1f989", "bee": "1f41d", "butterfly": "1f98b", "snail": "1f40c",
    "turtle": "1f422", "fish": "1f420", "crab": "1f980", "whale": "1f433", "elephant": "1f418",
    # food
    "banana": "1f34c", "grapes": "1f347", "strawberry": "1f353", "lemon": "1f34b",
    "pineapple": "1f34d", "watermelon": "1f349", "carrot": "1f955", "corn": "1f33d",
    "pizza": "1f355", "hamburger": "1f354", "donut": "1f369", "bread": "1f35e",
    "cheese": "1f9c0", "mushroom": "1f344",
    # things
    "car": "1f697", "bus": "1f68c", "bicycle": "1f6b2", "rocket": "1f680", "airplane": "2708-fe0f",
    "boat": "26f5", "clock": "23f0", "umbrella": "2602-fe0f", "key": "1f511", "bell": "1f514",
    "guitar": "1f3b8", "camera": "1f4f7", "scissors": "2702-fe0f", "hammer": "1f528",
    "gift": "1f381", "crown": "1f451", "football": "26bd", "house": "1f3e0", "tree": "1f333",
    "cactus": "1f335", "sunflower": "1f33b", "rose": "1f339", "star": "2b50", "moon": "1f319",
    "snowman": "26c4", "fire": "1f525",
}  # fmt: skip
_COLOURED = {
    "heart": ("2764-fe0f", "1f9e1", "1f49b", "1f49a", "1f499", "1f49c", "1f90e", "1f5a4", "1f90d"),
    "circle": ("1f534", "1f7e0", "1f7e1", "1f7e2", "1f535", "1f7e3", "1f7e4", "26ab", "26aa"),
    "square": ("1f7e5", "1f7e7", "1f7e8", "1f7e9", "1f7e6", "1f7ea", "1f7eb", "2b1b", "2b1c"),
}
_BOOKS = {"red": "1f4d5", "green": "1f4d7", "blue": "1f4d8", "orange": "1f4d9"}
_PLURALS = {"butterfly": "butterflies", "strawberry": "strawberries", "bus": "buses"}
_ALWAYS_PLURAL = ("grapes", "scissors")

PLAIN = tuple(Picture(name, code) for name, code in _SINGLE.items())
COLOURED = {
    **{
        name: tuple(
            Picture(name, code, colour) for code, colour in zip(codes, COLOURS, strict=True)
        )
        for name, codes in _COLOURED.items()
    },
    "book": tuple(Picture("book", code, colour) for colour, code in _BOOKS.items()),
}
PICTURES = (*PLAIN, *(picture for pictures in COLOURED.values() for picture in pictures))
NAMES = (*_SINGLE, *COLOURED)


def countable(name: str) -> bool:
    """Whether "how many" can be asked of the noun."""
    return name not in _ALWAYS_PLURAL and name not in {"fire", "corn", "bread", "cheese", "pizza"}


def plural(name: str) -> str:
    """Several of the noun: "dogs", "foxes"."""
    if name in _PLURALS:
        return _PLURALS[name]
    if name in {"fish", *_ALWAYS_PLURAL}:
        return name
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(name: str) -> str:
    """The noun as "is there ...?" takes it: "a dog", "an owl", but "bread" and "scissors"."""
    if name in _ALWAYS_PLURAL or name in {"fire", "corn", "bread", "cheese"}:
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
