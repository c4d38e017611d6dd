"""What the decoder gets of an image: its tokens, and where on the photo they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.manifest import VisionModel
from atp_runtime.reduction import NOWHERE, Reduction

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tokens of an image lie, in their order.

    Attributes:
        row: int64 [tokens]: the row of the patch; -1 for what has no place on the grid.
        column: int64 [tokens]: likewise.
    """

    row: IndexArray
    column: IndexArray

    @classmethod
    def whole(cls, vision: VisionModel) -> Places:
        """Those of all features that a tower gives."""
        patch = np.arange(vision.tokens) - vision.prefix_tokens + vision.skipped_patches
        row, column = np.divmod(patch, vision.grid[1])
        row[: vision.prefix_tokens] = column[: vision.prefix_tokens] = -1
        return cls(row, column)

    def __len__(self) -> int:
        return len(self.row)

    def reduced(self, reduction: Reduction) -> Places:
        """Those of what is left."""
        lost = reduction.place == NOWHERE
        row, column = (
            np.where(lost, -1, line[reduction.place]) for line in (self.row, self.column)
        )
        return Places(row, column)


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """An image as the decoder sees it.

    Attributes:
        values: T [tokens, hidden].
        places: Where they lie.
    """

    values: npt.NDArray[Any]
    places: Places

    def __len__(self) -> int:
        return len(self.values)
