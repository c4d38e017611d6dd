"""What a pruning point reads from the layer before it, with gradients and for a whole batch.

The definitions are those of `atp_models.reference_layers.Scores`; here visual tokens count by
their soft mask, which at inference is 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from atp_models.training.rows import TokenBatch

HIDDEN_KEY = -3e4
"""Added to the scores of keys that a query must not see. Finite in every floating type, and far
below any score, so that its softmax is exactly 0."""


@dataclass(frozen=True, eq=False)
class BatchScores:
    """Scores of every token, float32; what is no visual token is to be ignored.

    Attributes:
        own: S_self [batch, tokens].
        cross: S_cross [batch, tokens].
        has_text: bool [batch], whether text follows the last image; if not, `cross` is 0.
    """

    own: Tensor
    cross: Tensor
    has_text: Tensor


@contextmanager
def watch_projections(attention: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of "q_proj" and "k_proj" while a layer runs.

    They are taken where they are computed, not computed again, so that weights which are there
    during the layer's forward only (FSDP) and adapters (LoRA) need no special care.
    """
    seen: dict[str, Tensor] = {}

    def keep_as(name: str) -> Any:
        return lambda _module, _inputs, output: seen.update({name: output})

    hooks = [
        attention.get_submodule(name).register_forward_hook(keep_as(name))
        for name in ("q_proj", "k_proj")
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def batch_scores(
    attention: Any,
    projections: dict[str, Tensor],
    rotation: tuple[Tensor, Tensor],
    batch: TokenBatch,
    mask: Tensor,
) -> BatchScores:
    """S_self and S_cross of every token.

    Args:
        attention: The layer's attention, for its sizes.
        projections: See `watch_projections`.
        rotation: Cosine and sine [batch, tokens, head_dim] that the layer was given.
        batch: The tokens that entered the layer; not packed.
        mask: The soft mask that the layer's keys had [batch, tokens], 1 for text.
    """
    with torch.autocast(mask.device.type, enabled=False):
        query, key = rotated_heads(attention, projections, rotation)
        own = self_scores(query, key, mask * batch.visual) * attention.scaling
        cross = _cross_scores(query * attention.scaling, key, batch, mask)
        return BatchScores(own, cross, batch.asking.any(1))


def rotated_heads(
    attention: Any, projections: dict[str, Tensor], rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Queries and keys float32 [batch, heads, tokens, head_dim]; see `batch_scores`."""
    query, key = (_heads(projections[name], attention) for name in ("q_proj", "k_proj"))
    query, key = apply_rotary_pos_emb(query, key, *(part.float() for part in rotation))
    return query, key


def log_mask(mask: Tensor) -> Tensor:
    """log(mask) in float32, finite where the mask is 0."""
    return mask.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def _heads(projected: Tensor, attention: Any) -> Tensor:
    """[batch, heads, tokens, head_dim] of [batch, tokens, heads * head_dim], float32."""
    return torch.unflatten(projected.float(), 2, (-1, attention.head_dim)).transpose(1, 2)


def self_scores(query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """Mean over heads and weighted queries of q . k [batch, tokens], by way of the mean query.

    Args:
        query: [batch, heads, tokens, head_dim].
        key: [batch, kv_heads, tokens, head_dim].
        weights: [batch, tokens], 0 for what is no visual token.
    """
    total = weights.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    mean = torch.einsum("bhnd,bn->bhd", query, weights) / total[:, None, None]
    groups = torch.unflatten(mean, 1, (key.shape[1], -1)).sum(2)
    return torch.einsum("bkd,bknd->bn", groups, key) / query.shape[1]


def _cross_scores(query: Tensor, key: Tensor, batch: TokenBatch, mask: Tensor) -> Tensor:
    """Mean over heads and asking rows of the attention [batch, tokens]; 0 where nobody asks."""
    count = batch.asking.sum(1)
    rows = batch.asking.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    asks = batch.asking.gather(1, rows)
    width = query.shape[3]
    picked = query.gather(2, rows[:, None, :, None].expand(-1, query.shape[1], -1, width))
    grouped = torch.unflatten(picked, 1, (key.shape[1], -1)).flatten(2, 3)
    products = (grouped @ key.transpose(2, 3)).view(*picked.shape[:3], key.shape[2])
    places = torch.arange(mask.shape[1], device=mask.device)
    visible = (places <= rows.unsqueeze(2)) & (batch.blocks >= 0).unsqueeze(1)
    bias = torch.where(visible, log_mask(mask).unsqueeze(1), HIDDEN_KEY)
    attended = (products + bias.unsqueeze(1)).softmax(-1).mean(1)
    summed: Tensor = (attended * asks.unsqueeze(2)).sum(1)
    return summed / count.clamp_min(1).unsqueeze(1)
