"""Decoder layers of Transformers run one by one, with everything they compute in sight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

# The one implementation that returns its attention weights.
ATTENTION = "eager"


@dataclass(frozen=True, eq=False)
class Scores:
    """What a pruning point reads from the layer before it, heads averaged (papers.md, 1).

    Attributes:
        own: S_self [kept]: mean over the visual queries of q . k / sqrt(head_dim), before the
            softmax and without a causal mask; 0 without visual tokens.
        cross: S_cross [kept]: mean over the rows that were asked of the attention weights; 0
            without any.
        asked: bool [kept], those rows.
        rows: [rows, kept], the attention weights of each of them; of the first token without any.
    """

    own: Tensor
    cross: Tensor
    asked: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a layer needs to know about the tokens of its chunk.

    Attributes:
        positions: int64 [kept], before any pruning.
        visual: bool [kept].
        places: int64 [kept, 3]: image, row and column of visual tokens, -1 for what has none; None
            where nothing asks for them.
    """

    positions: Tensor
    visual: Tensor
    places: Tensor | None = None

    @property
    def placed(self) -> Tensor:
        """Bool [kept]: visual tokens with a place on the grid, which a class token has not."""
        if self.places is None:
            return torch.zeros_like(self.visual)
        return self.places[:, 1] >= 0

    def keep(self, indices: Tensor) -> Tokens:
        """Those at `indices` (int64 [kept])."""
        places = None if self.places is None else self.places[indices]
        return Tokens(self.positions[indices], self.visual[indices], places)


@dataclass(frozen=True, eq=False)
class Survivors:
    """What goes on of the tokens that left a layer.

    Attributes:
        indices: int64 [kept], rising: whose positions those that enter the next one have.
        merged: int64 [merged]: which of the kept are made of others.
        shares: float32 [merged, tokens]: the share of each token in each of these.
    """

    indices: Tensor
    merged: Tensor
    shares: Tensor

    @classmethod
    def unmerged(cls, indices: Tensor, tokens: int) -> Survivors:
        """Tokens as they are, at `indices` (int64 [kept]) among `tokens`."""
        return cls(indices, torch.zeros(0, dtype=torch.int64), torch.zeros(0, tokens))

    def of(self, hidden: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
        """Hidden states [1, kept, hidden] of [1, tokens, hidden], and what the tokens are.

        Merged ones have no row and column.
        """
        kept, left = hidden[:, self.indices], tokens.keep(self.indices)
        kept[:, self.merged] = (self.shares.double() @ hidden.double()).to(hidden.dtype)
        if left.places is not None:
            left.places[self.merged, 1:] = -1
        return kept, left


@dataclass(frozen=True, eq=False)
class LayerStep:
    """What one decoder layer did with one chunk.

    Attributes:
        tokens: Those that went through it.
        entered: Hidden states [1, kept, hidden] that it took; if it is routed, those that skip it
            are among them.
        left: Hidden states [1, kept, hidden] that it gave, likewise.
        query: [1, kept, heads * head_dim], before RoPE.
        key: [1, kept, kv_heads, head_dim], after RoPE, of the chunk.
        value: Like `key`.
        scores: If they were asked for.
        router: If the next layer is routed, its router's scores of what left this one.
    """

    tokens: Tokens
    entered: Tensor
    left: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scores: Scores | None
    router: Tensor | None = None


class LayerRunner:
    """Runs decoder layers on chunk after chunk and keeps each one's keys and values.

    Args:
        rotary: The decoder's rotary embedding.
    """

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = rotary
        self._cache = DynamicCache()

    @torch.inference_mode()
    def run(
        self, layer: nn.Module, hidden: Tensor, tokens: Tokens, asked: Tensor | None = None
    ) -> LayerStep:
        """Runs one layer on one chunk.

        Args:
            layer: A decoder layer of Transformers, its attention `ATTENTION`.
            hidden: [1, kept, hidden].
            tokens: What they are.
            asked: bool [kept], whose attention `Scores.cross` averages; None computes no scores.
        """
        attention: Any = layer.self_attn
        past = self._cache.get_seq_length(attention.layer_idx)
        rotation = self._rotary(hidden, tokens.positions.unsqueeze(0))
        with _watch(attention) as seen:
            left = layer(
                hidden,
                attention_mask=_causal_mask(tokens.positions, past),
                position_ids=tokens.positions.unsqueeze(0),
                past_key_values=self._cache,
                use_cache=True,
                position_embeddings=rotation,
            )
        cached = self._cache.layers[attention.layer_idx]
        # Copies: the cache is replaced by a longer one with the next chunk.
        key, value = (
            kv[:, :, past:].transpose(1, 2).clone() for kv in (cached.keys, cached.values)
        )
        query, scores = seen["q_proj"], None
        if asked is not None:
            heads = torch.unflatten(query, 2, (-1, attention.head_dim)).transpose(1, 2)
            rotated, _ = apply_rotary_pos_emb(heads, heads, *rotation)
            weights = seen["attention"][..., past:]
            keys = cached.keys[:, :, past:]
            scores = attention_scores(rotated, keys, weights, tokens.visual, asked)
        return LayerStep(tokens, hidden, left, query, key, value, scores)


def attention_scores(
    query: Tensor, key: Tensor, weights: Tensor, visual: Tensor, asked: Tensor
) -> Scores:
    """S_self and S_cross, from whole matrices.

    Args:
        query: [1, heads, kept, head_dim], after RoPE.
        key: [1, kv_heads, kept, head_dim], after RoPE.
        weights: Attention [1, heads, kept, kept] of the chunk to itself, after the softmax.
        visual: bool [kept].
        asked: bool [kept], see `LayerRunner.run`.
    """
    nothing, mean = torch.zeros(visual.shape[0]), weights[0].mean(0)
    if not bool(visual.any()):
        return Scores(nothing, nothing, torch.zeros_like(visual), mean[:1])
    groups = query.shape[1] // key.shape[1]
    products = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3)
    own = (products / query.shape[3] ** 0.5)[0].mean(0)[visual].mean(0)
    if not bool(asked.any()):
        return Scores(own, nothing, asked, mean[:1])
    return Scores(own, mean[asked].mean(0), asked, mean[asked])


def _causal_mask(positions: Tensor, past: int) -> Tensor:
    """What is added to attention scores: [1, 1, kept, past + kept]; all of the past is seen."""
    hidden = positions.unsqueeze(1) < positions.unsqueeze(0)
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    return torch.nn.functional.pad(mask, (past, 0))[None, None]


@contextmanager
def _watch(attention: Any) -> Iterator[dict[str, Tensor]]:
    """Collects what an attention module computes inside: "q_proj" and "attention"."""
    seen: dict[str, Tensor] = {}
    hooks = [
        attention.q_proj.register_forward_hook(lambda _m, _i, out: seen.update(q_proj=out)),
        attention.register_forward_hook(lambda _m, _i, out: seen.update(attention=out[1])),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
