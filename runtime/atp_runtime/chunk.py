"""What the tokens of one prefill are: text, or which patch of which image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atp_runtime.errors import InputError
from atp_runtime.manifest import VisionModel
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
    def from_ids(cls, ids: npt.ArrayLike, vision: VisionModel, first_image: int = 0) -> Chunk:
        """A chunk whose visual tokens are the image placeholders among `ids`.

        Args:
            ids: int64 [N], with `vision.tokens` placeholders for each image.
            vision: How the features of an image lie on it.
            first_image: The images that earlier chunks of the conversation had.

        Raises:
            InputError: The placeholders are no whole number of images.
        """
        places = np.asarray(ids, dtype=np.int64) == vision.image_token_id
        images, rest = divmod(int(places.sum()), vision.tokens)
        if rest:
            raise InputError(
                f"{images * vision.tokens + rest} image placeholders in the prompt",
                why=f"an image has {vision.tokens}.",
                fix=f"do not write the placeholder (token id {vision.image_token_id}) into the "
                "question.",
            )
        patch = np.arange(vision.tokens) - vision.prefix_tokens + vision.skipped_patches
        row, column = np.divmod(patch, vision.grid[1])
        row[: vision.prefix_tokens] = column[: vision.prefix_tokens] = -1
        chunk = np.full((3, len(places)), -1, dtype=np.int64)
        chunk[0, places] = np.repeat(np.arange(first_image, first_image + images), vision.tokens)
        chunk[1, places] = np.tile(row, images)
        chunk[2, places] = np.tile(column, images)
        return cls(*chunk)

    def __len__(self) -> int:
        return len(self.image)

    def visual(self) -> VisualTokens:
        """The visual tokens, `index` being their places in the chunk."""
        index = np.flatnonzero(self.image >= 0)
        return VisualTokens(index, self.image[index], self.row[index], self.column[index])
