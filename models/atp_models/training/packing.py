"""Fewer tokens in training: shared image prefixes, and a part of the visual tokens.

Packed conversations about the same images share one row: their common beginning, which holds the
images, once, and then each one's rest as a block of its own. A block sees the prefix and itself,
and its positions go on where the prefix ends, so losses and gradients are those of separate rows.
Which visual tokens a pruning point keeps depends on the question, so rows are taken apart there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atp_models.training.rows import PADDING, PREFIX, UNSUPERVISED, TokenBatch, TokenRow


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Where the features of an image lie.

    Attributes:
        row: int64 [features], -1 for a feature without a place, such as a class token.
        column: int64 [features], likewise.
    """

    row: Tensor
    column: Tensor

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of(
        cls, grid: tuple[int, int], *, prefix_tokens: int = 0, skipped_patches: int = 0
    ) -> PatchGrid:
        """The places of an image's features; for the arguments see `VisionSpec`."""
        patches = torch.arange(skipped_patches, grid[0] * grid[1])
        nowhere = torch.full((prefix_tokens,), -1)
        return cls(
            torch.cat((nowhere, patches // grid[1])), torch.cat((nowhere, patches % grid[1]))
        )

    def subgrid(self, stride: int, offset: tuple[int, int]) -> Tensor:
        """Which features lie on a uniform grid, bool [features]; those without a place do.

        Args:
            stride: Rows and columns between two of its points.
            offset: Row and column of its first point, below `stride`.
        """
        fits = (self.row % stride == offset[0]) & (self.column % stride == offset[1])
        return fits | (self.row < 0)


def pack(rows: Sequence[TokenRow]) -> TokenRow:
    """One row of conversations about the same images.

    Args:
        rows: At least one; their images must be the same, which is not checked.

    Raises:
        ValueError: The rows differ before the end of their images, an answer lies there, or a
            row is packed already.
    """
    first, *others = rows
    if not others:
        return first
    if any(bool((row.blocks != PREFIX).any()) for row in rows):
        raise ValueError("a row is packed already")
    shared = _shared_prefix(rows)
    if any(bool((row.features[shared:] >= 0).any()) for row in rows):
        raise ValueError(f"the rows differ from token {shared} on, before the end of their images")
    parts = [first.at(torch.arange(shared))]
    for number, row in enumerate(rows, start=PREFIX + 1):
        rest = row.at(torch.arange(shared, len(row)))
        parts.append(dataclasses.replace(rest, blocks=torch.full_like(rest.blocks, number)))
    joined = {
        field.name: torch.cat([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(TokenRow)
        if field.name != "images"
    }
    return TokenRow(**joined, images=first.images)


def unpack(batch: TokenBatch, hidden: Tensor) -> tuple[TokenBatch, Tensor]:
    """A row for each block of packed rows, the prefix in every one of them.

    Args:
        batch: Rows, packed or not. Its images stay as they are: rows share them.
        hidden: Hidden states [batch, tokens, hidden] of its tokens.

    Returns:
        Both, with as many rows as there are blocks; a row without blocks is one.
    """
    last = batch.blocks.amax(1).clamp_min(PREFIX + 1)
    source = torch.arange(len(last), device=last.device).repeat_interleave(last)
    block = torch.cat([torch.arange(PREFIX + 1, int(it) + 1) for it in last]).to(last.device)
    rows = {
        name: value if name in ("pixel_values", "tower_features") else value[source]
        for name, value in batch.tensors().items()
    }
    spread = dataclasses.replace(batch, **rows)
    own = (spread.blocks == PREFIX) | (spread.blocks == block.unsqueeze(1))
    apart, places, valid = spread.only(own)
    apart = dataclasses.replace(apart, blocks=torch.where(valid, PREFIX, PADDING))
    return apart, hidden[source.unsqueeze(1), places]


def keep_features(row: TokenRow, kept: Tensor) -> TokenRow:
    """Leaves visual tokens out of a row; the others keep their positions.

    Args:
        row: With images.
        kept: bool [images * features].
    """
    stays = (row.features < 0) | kept[row.features.clamp_min(0)]
    return row.at(stays.nonzero().flatten())


def thin_batch(batch: TokenBatch, grid: PatchGrid, strides: Tensor, offsets: Tensor) -> TokenBatch:
    """Leaves of every image the visual tokens of a uniform grid; all keep their positions.

    Args:
        batch: With images.
        grid: Where their features lie, on the batch's device.
        strides: int64 [batch], rows and columns between two tokens.
        offsets: int64 [batch, 2], row and column of the first, below the stride.
    """
    patch = batch.features.clamp_min(0) % len(grid)
    row, column = grid.row[patch], grid.column[patch]
    each = strides.unsqueeze(1)
    on_grid = (row % each == offsets[:, :1]) & (column % each == offsets[:, 1:])
    stays = (batch.features < 0) | (row < 0) | on_grid
    thinned, _, _ = batch.only(stays & (batch.blocks >= 0))
    return dataclasses.replace(thinned, strides=strides)


def _shared_prefix(rows: Sequence[TokenRow]) -> int:
    """Length of the common beginning; nothing is learnt inside it, and every row is longer."""
    length = min(len(row) for row in rows) - 1
    ids = torch.stack([row.ids[:length] for row in rows])
    differs = (ids != ids[0]).any(0)
    learnt = torch.stack([row.targets[:length] != UNSUPERVISED for row in rows]).any(0)
    ends = (differs | learnt).nonzero()
    return int(ends[0]) if len(ends) else length
