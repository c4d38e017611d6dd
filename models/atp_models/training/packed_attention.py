"""Attention of a packed row without the products that its mask would throw away.

A token of a block attends to the prefix and to its own block: of the N x N products of a row
with many blocks, that is few. The prefix is causal attention; the blocks, those of about the
same length together, are a batch that shares the prefix's keys. Results are those of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from atp_models.training.rows import PREFIX
from atp_models.training.scoring import HIDDEN_KEY

NAME = "atp_packed"
"""Attention that Transformers is to use; without a layout it is its own "sdpa"."""
_LONGEST_TO_SHORTEST = 1.5  # within a group


@dataclass(frozen=True, eq=False)
class BlockGroup:
    """Blocks that are computed together, filled up to the longest.

    Attributes:
        tokens: int64 [blocks, length], their places in the row; any where filled up.
        valid: bool [blocks, length].
        visible: bool [blocks, 1, length, prefix + length].
    """

    tokens: Tensor
    valid: Tensor
    visible: Tensor


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """How a packed row is divided.

    Attributes:
        prefix: Tokens of the prefix, with which the row begins.
        groups: Its blocks.
        order: int64 [tokens], where each token of the row is in what the prefix and the groups
            give, one after the other.
    """

    prefix: int
    groups: tuple[BlockGroup, ...]
    order: Tensor

    @classmethod
    def of(cls, blocks: Tensor) -> PackedLayout:
        """The layout of a row.

        Args:
            blocks: int64 [tokens], see `atp_models.training.packing`; at least one block.
        """
        prefix = int((blocks == PREFIX).sum())
        places = [
            (blocks == number).nonzero().flatten() for number in torch.unique(blocks[prefix:])
        ]
        places.sort(key=len)
        groups, first = [], 0
        for last in range(1, len(places) + 1):
            full = last == len(places)
            if full or len(places[last]) > _LONGEST_TO_SHORTEST * len(places[first]):
                groups.append(_group(places[first:last], prefix))
                first = last
        given = [torch.arange(prefix, device=blocks.device)]
        given += [group.tokens[group.valid] for group in groups]
        return cls(prefix, tuple(groups), torch.cat(given).argsort())


def _group(blocks: Sequence[Tensor], prefix: int) -> BlockGroup:
    tokens = torch.nn.utils.rnn.pad_sequence(list(blocks), True, -1)
    valid = tokens >= 0
    length = tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    own = causal.expand(len(blocks), 1, length, length)
    seen = torch.ones(len(blocks), 1, length, prefix, dtype=torch.bool, device=tokens.device)
    return BlockGroup(tokens.clamp_min(0), valid, torch.cat([seen, own], dim=3))


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float
) -> Tensor:
    """The attention of one row [1, tokens, heads, head_dim].

    Args:
        query: [1, heads, tokens, head_dim].
        key: [1, kv_heads, tokens, head_dim].
        value: Likewise.
        layout: Of the row.
        scaling: Of the products.
    """
    shared = layout.prefix
    causal = torch.ones(shared, shared, dtype=torch.bool, device=query.device).tril()
    query = query * scaling
    first = _attend(query[:, :, :shared], key[:, :, :shared], value[:, :, :shared], causal)
    outputs = [first[0].transpose(0, 1)]
    for group in layout.groups:
        keys, values = (
            torch.cat([_shared(it, shared, len(group.tokens)), _blocks(it, group)], dim=2)
            for it in (key, value)
        )
        attended = _attend(_blocks(query, group), keys, values, group.visible)
        outputs.append(attended.transpose(1, 2)[group.valid])
    return torch.cat(outputs)[layout.order].unsqueeze(0)


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """[batch, heads, queries, head_dim]; query heads share key heads.

    In plain products: on CPUs the fused kernels' backward pass is slower at sizes like these.
    """
    batch, heads, length, width = query.shape
    shape = (batch, key.shape[1], heads // key.shape[1] * length, width)
    scores = (query.reshape(shape) @ key.transpose(2, 3)).view(batch, heads, length, -1)
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.masked_fill(~visible, HIDDEN_KEY).softmax(-1, dtype=precise).to(value.dtype)
    return (weights.view(*shape[:3], -1) @ value).view(query.shape)


def _shared(states: Tensor, prefix: int, blocks: int) -> Tensor:
    return states[:, :, :prefix].expand(blocks, -1, -1, -1)


def _blocks(states: Tensor, group: BlockGroup) -> Tensor:
    """[blocks, heads, length, head_dim] of [1, heads, tokens, head_dim]."""
    return states[0][:, group.tokens].transpose(0, 1)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_layout: PackedLayout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    if packed_layout is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return found
    return packed_attention(query, key, value, packed_layout, options["scaling"]), None


AttentionInterface.register(NAME, _forward)
