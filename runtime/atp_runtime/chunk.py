"""What the tokens of one prefill are: text, or which patch of which image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atp_runtime.errors import InputError
from atp_runtime.image_tokens import Places
from atp_runtime.selection import IndexArray, VisualTokens


@dataclass(frozen=True, eq=False)
class Chunk:
    """The N tokens of one prefill: a prompt, or a later turn of the conversation.

    Attributes:
        image: int64 [N]: the image a token belongs to, counted through the conversation; -1
            for text.
        row: int64 [N]: the row of its patch; -1 for text and for features that have no place
            on the grid.
        column: int64 [N]: the column of its patch; -1 likewise.
    """

    image: IndexArray
    row: IndexArray
    column: IndexArray

    def __post_init__(self) -> None:
        if self.image.ndim != 1 or not self.image.shape == self.row.shape == self.column.shape:
            raise ValueError("image, row and column must be [N], all of the same length")

    @classmethod
    def text(cls, tokens: int) -> Chunk:
        """A chunk without images."""
        none = np.full(tokens, -1, dtype=np.int64)
        return cls(none, none, none)

    @classmethod
    def from_ids(
        cls, ids: npt.ArrayLike, placeholder: int, images: Sequence[Places], first_image: int = 0
    ) -> Chunk:
        """A chunk whose visual tokens are the image placeholders among `ids`.

        Args:
            ids: int64 [N], with as many placeholders for each image as it has tokens.
            placeholder: Its id.
            images: Where the tokens of each image lie.
            first_image: The images that earlier chunks of the conversation had.

        Raises:
            InputError: There are more or fewer placeholders than tokens.
        """
        at = np.asarray(ids, dtype=np.int64) == placeholder
        counts = [len(places) for places in images]
        if int(at.sum()) != sum(counts):
            raise InputError(
                f"{int(at.sum())} image placeholders in the prompt",
                why=f"{len(images)} image(s) have {sum(counts)} tokens.",
                fix=f"do not write the placeholder (token id {placeholder}) into the question.",
            )
        chunk = np.full((3, len(at)), -1, dtype=np.int64)
        if images:
            numbers = range(first_image, first_image + len(images))
            chunk[0, at] = np.repeat(numbers, counts)
            chunk[1, at] = np.concatenate([places.row for places in images])
            chunk[2, at] = np.concatenate([places.column for places in images])
        return cls(*chunk)

    def __len__(self) -> int:
        return len(self.image)

    def visual(self) -> VisualTokens:
        """The visual tokens, `index` being their places in the chunk."""
        index = np.flatnonzero(self.image >= 0)
        return VisualTokens(index, self.image[index], self.row[index], self.column[index])
