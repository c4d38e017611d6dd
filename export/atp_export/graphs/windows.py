"""Attention of visual tokens to their neighbours, block by block of the grid's rows.

What a block sees is gathered by the tables of `StructureRows`: holes that pruning left are hidden
by the mask, and no matrix of all tokens by all tokens appears.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atp_export.graphs.dialects import Dialect, grouped_scores
from atp_runtime.structure_rows import Blocks


@dataclass(frozen=True)
class Window:
    """Tables of `StructureRows`, and the mask that `WindowEntry` makes of them.

    Attributes:
        queries: int64 [blocks, query].
        keys: int64 [blocks, band].
        cells: int64 [visual].
        mask: The dialect's, for [blocks, query, past + others + band].
    """

    queries: Tensor
    keys: Tensor
    cells: Tensor
    mask: Tensor


class WindowEntry(nn.Module):
    """Makes the mask that all layers of a segment share."""

    def __init__(self, dialect: Dialect, blocks: Blocks) -> None:
        super().__init__()
        self.dialect = dialect
        self.blocks = blocks

    def forward(
        self,
        position_ids: Tensor,
        past_length: Tensor,
        past_key: Tensor,
        other_rows: Tensor,
        window_queries: Tensor,
        window_keys: Tensor,
    ) -> Tensor:
        """What the places of each block see: what is cached, earlier text, and neighbours.

        Args:
            position_ids: [1, kept], int64.
            past_length: [1], int64, how many of the `past` positions are filled.
            past_key: [1, past, kv_heads, head_dim] of any layer, for its length.
            other_rows: [others], int64.
            window_queries: [blocks, query], int64.
            window_keys: [blocks, band], int64.

        Returns:
            What the dialect's `apply_mask` takes, [blocks, query, past + others + band].
        """
        position = position_ids[0]
        blocks, query = window_queries.shape
        asking = position.index_select(0, window_queries.flatten().clamp(min=0))
        asking = asking.reshape(blocks, query, 1)
        earlier = asking >= position.index_select(0, other_rows)
        filled = torch.arange(past_key.shape[1], device=position.device) < past_length
        near = self._near() & (window_keys >= 0).unsqueeze(1)
        return self.dialect.mask(torch.cat((filled.expand(blocks, query, -1), earlier, near), 2))

    def _near(self) -> Tensor:
        """Whether places are neighbours: bool [query, band], the same in every block."""
        columns, radius = self.blocks.columns, self.blocks.radius
        query, key = torch.arange(self.blocks.queries), torch.arange(self.blocks.keys)
        # The first row of keys lies `radius` above the first row of queries.
        down = key // columns - radius - (query // columns).unsqueeze(1)
        along = key % columns - (query % columns).unsqueeze(1)
        return (down.abs() <= radius) & (along.abs() <= radius)


def attend_in_windows(
    dialect: Dialect,
    query: Tensor,
    new: tuple[Tensor, Tensor],
    past: tuple[Tensor, Tensor],
    others: Tensor,
    window: Window,
    heads: Tensor | None,
) -> Tensor:
    """What visual tokens mix from what is cached, earlier text and their neighbours.

    Args:
        dialect: What to write.
        query: [1, kept, heads, head_dim] of the heads that take part.
        new: Keys and values of the chunk, [1, kept, kv_heads, head_dim].
        past: Those that are cached, [1, past, kv_heads, head_dim].
        others: int64 [others].
        window: The tables and their mask.
        heads: int64: the key/value heads that take part; None is all.

    Returns:
        [1, visual, heads * head_dim].
    """
    blocks, places = window.queries.shape
    asking = query[0].index_select(0, window.queries.flatten().clamp(min=0))
    asking = asking.reshape(blocks, places, query.shape[2], query.shape[3])
    keys, values = (
        _seen(cached, fresh, others, window, heads) for cached, fresh in zip(past, new, strict=True)
    )
    # Decomposed in both dialects: the Attention operator refuses a step that has no blocks.
    scores = dialect.apply_mask(grouped_scores(asking, keys), window.mask[:, None, None])
    mixed = scores.softmax(-1).to(values.dtype) @ values.permute(0, 2, 1, 3).unsqueeze(2)
    in_rows = mixed.permute(0, 3, 1, 2, 4).reshape(blocks * places, -1)
    return in_rows.index_select(0, window.cells).unsqueeze(0)


def _seen(
    past: Tensor, new: Tensor, others: Tensor, window: Window, heads: Tensor | None
) -> Tensor:
    """Keys or values [blocks, past + others + band, heads, head_dim]."""
    blocks, band = window.keys.shape
    near = new[0].index_select(0, window.keys.flatten().clamp(min=0))
    near = near.reshape(blocks, band, new.shape[2], new.shape[3])
    # Spread over the blocks before heads are chosen: a step of decoding, which has no blocks, then
    # copies nothing of the cache.
    shared = (it.expand(blocks, -1, -1, -1) for it in (past, new.index_select(1, others)))
    seen = torch.cat((*shared, near), 1)
    return seen if heads is None else seen.index_select(2, heads)
