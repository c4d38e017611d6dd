"""What the patches of a scene show, said in the language model's own word embeddings.

The projector begins as a dictionary: the feature of a patch becomes about the sum of the
embeddings of its picture's noun, its colour, its size and its place. The decoder
then begins with tokens whose words it knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from atp_models.demo.scenes.captions import LARGE, SMALL
from atp_models.demo.scenes.layout import SIDE, Item, Scene
from atp_models.demo.scenes.vocabulary import COLOURS, NAMES

GRID = 24
BACKGROUND = len(NAMES)
"""The noun number of a patch without a picture."""
NONE = -1
"""The colour or size number of what has none."""
SIZES = ("small", "large")
_PATCH = SIDE // GRID

# How loud each part is said. The noun is what most answers are made of; the others are there so
# that questions about them have something to read.
_COLOUR, _PLACE, _SIZE, _NOTHING = 0.9, 0.8, 0.6, 0.5
# Of a square picture's side, what surely shows it: artwork is seldom square.
_CORE = 0.8
_MARGIN = 8  # pixels around a picture that show neither it nor surely the background


@dataclass(frozen=True, eq=False)
class PatchLabels:
    """What is known of the patches of a scene, int64 [GRID * GRID] each.

    Attributes:
        noun: Index into `NAMES`, or `BACKGROUND`.
        colour: Index into `COLOURS`, or `NONE`.
        size: Index into `SIZES`, or `NONE`.
        certain: bool; False at the rims of pictures.
    """

    noun: Tensor
    colour: Tensor
    size: Tensor
    certain: Tensor

    @classmethod
    def of(cls, scene: Scene) -> PatchLabels:
        """Labels every patch by the picture whose core its middle lies in."""
        noun = np.full((GRID, GRID), BACKGROUND)
        colour, size = np.full((GRID, GRID), NONE), np.full((GRID, GRID), NONE)
        near = np.zeros((GRID, GRID), dtype=bool)
        for item in scene.items:
            inside = _within(item, item.size * _CORE / 2)
            noun[inside] = NAMES.index(item.picture.name)
            if item.picture.colour is not None:
                colour[inside] = COLOURS.index(item.picture.colour)
            size[inside] = 0 if item.size < SMALL else 1 if item.size >= LARGE else NONE
            near |= _within(item, item.size / 2 + _MARGIN)
        certain = (noun != BACKGROUND) | ~near
        return cls(*(torch.from_numpy(part.ravel()) for part in (noun, colour, size, certain)))


def _within(item: Item, reach: float) -> np.typing.NDArray[np.bool_]:
    middle = np.arange(GRID) * _PATCH + _PATCH // 2
    row, column = np.abs(middle - item.y) <= reach, np.abs(middle - item.x) <= reach
    inside: np.typing.NDArray[np.bool_] = row[:, None] & column[None, :]
    return inside


class PatchWords:
    """The vectors that patches are to become.

    Args:
        embedding: The language model's token embedding [vocabulary, hidden].
        tokenizer: Its tokenizer.
    """

    def __init__(self, embedding: Tensor, tokenizer: Tokenizer) -> None:
        self._embedding = embedding.float()
        self._tokenizer = tokenizer
        self.nouns = self._vectors((*NAMES, "background"))
        self.colours = self._vectors(COLOURS)
        self._sizes = self._vectors(SIZES)
        self._rows = self._vectors(("top", "middle", "bottom"))
        self._columns = self._vectors(("left", "center", "right"))

    def targets(self, noun: Tensor, colour: Tensor, size: Tensor, patch: Tensor) -> Tensor:
        """Sums of words [n, hidden] for labels and patch numbers int64 [n]."""
        loud = torch.where(noun == BACKGROUND, _NOTHING, 1.0).unsqueeze(1)
        place = _between(self._rows, patch // GRID) + _between(self._columns, patch % GRID)
        return (
            loud * self.nouns[noun]
            + _COLOUR * _if_any(self.colours, colour)
            + _SIZE * _if_any(self._sizes, size)
            + _PLACE * place
        )

    def _vectors(self, words: tuple[str, ...]) -> Tensor:
        """Of each word, the mean over its tokens, with and without a space before it."""
        forms = [[self._mean(word), self._mean(f" {word}")] for word in words]
        return torch.stack([torch.stack(pair).mean(0) for pair in forms])

    def _mean(self, text: str) -> Tensor:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._embedding[ids].mean(0)


def _if_any(vectors: Tensor, number: Tensor) -> Tensor:
    return torch.where((number == NONE).unsqueeze(1), 0, vectors[number.clamp_min(0)])


def _between(words: Tensor, place: Tensor) -> Tensor:
    """From the first word over the second to the third as `place` goes from 0 to GRID - 1."""
    offsets = words - words.mean(0)
    at = place.float().unsqueeze(1) * 2 / (GRID - 1)
    first_half = offsets[0] * (1 - at) + offsets[1] * at
    second_half = offsets[1] * (2 - at) + offsets[2] * (at - 1)
    return torch.where(at < 1, first_half, second_half)
