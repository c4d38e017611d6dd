"""The decoder's modules, traced once each and composed into segments and the head.

A segment is `TokenMerge` if tokens may be merged before it, `SegmentEntry`, then one `DecoderLayer`
per layer, then `AttentionScorer` if it ends at a pruning point. Parameter names are those of the
checkpoint below `model.language_model.layers.{l}.`, so a weight is found by its name alone.

Axis names: `tokens` entering, `merged` of these, `kept` after the gather, `past` cached positions
and room behind them, `key` = past + kept, `rows` of text that the scorer averages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from atp_export.graphs.dialects import Dialect, grouped_scores
from atp_models.architecture import TextSpec


class TokenMerge(nn.Module):
    """Makes tokens of others, for `SegmentEntry` to gather from as from the rest."""

    def forward(self, hidden_states: Tensor, merge_weights: Tensor) -> Tensor:
        """Sums in float32.

        Args:
            hidden_states: [1, tokens, hidden].
            merge_weights: [merged, tokens], float32, the share of each token in each merged one.

        Returns:
            [1, tokens + merged, hidden], the merged ones last.
        """
        merged = merge_weights @ hidden_states[0].float()
        return torch.cat((hidden_states, merged.unsqueeze(0).to(hidden_states.dtype)), dim=1)


class SegmentEntry(nn.Module):
    """Gathers the tokens that stay and makes what all layers of the segment share."""

    def __init__(self, spec: TextSpec, dialect: Dialect) -> None:
        super().__init__()
        self.dialect = dialect
        self.attention_scaling = spec.rope.attention_scaling
        # Always float32; its values are the spec's, given when the stage is written.
        self.inv_freq = nn.Parameter(torch.empty(spec.head_dim // 2, dtype=torch.float32))

    def forward(
        self,
        hidden_states: Tensor,
        keep_indices: Tensor,
        position_ids: Tensor,
        past_length: Tensor,
        past_key: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gathers, and derives the rotary tables and the mask from the original positions.

        Args:
            hidden_states: [1, tokens, hidden].
            keep_indices: [kept], int64, ascending.
            position_ids: [1, kept], int64, positions before any pruning.
            past_length: [1], int64, how many of the `past` positions are filled.
            past_key: [1, past, kv_heads, head_dim] of any layer, for its length.

        Returns:
            hidden_states [1, kept, hidden], cos and sin [1, kept, head_dim / 2] in float32, and
            the dialect's mask for [kept, key].
        """
        kept = hidden_states.index_select(1, keep_indices)
        angles = position_ids.unsqueeze(-1).float() * self.inv_freq
        cos = angles.cos() * self.attention_scaling
        sin = angles.sin() * self.attention_scaling
        position = position_ids[0]
        among_new = position.unsqueeze(1) >= position.unsqueeze(0)
        # What the cache holds was there before any of these queries: all of it is visible.
        filled = torch.arange(past_key.shape[1], device=position.device) < past_length
        past = filled.unsqueeze(0).expand(position.shape[0], -1)
        visible = torch.cat((past, among_new), dim=1)
        return kept, cos, sin, self.dialect.mask(visible)


class RmsNorm(nn.Module):
    """A weight that the dialect normalises with."""

    def __init__(self, width: int, eps: float, dialect: Dialect) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.dialect = dialect

    def forward(self, x: Tensor) -> Tensor:
        """RMSNorm of `x` [..., width] over its last axis."""
        return self.dialect.rms_norm(x, self.weight, self.eps)


class Projections(nn.Module):
    """The four projections of LLaMA's attention with grouped key/value heads."""

    def __init__(self, spec: TextSpec, dialect: Dialect) -> None:
        super().__init__()
        self.dialect = dialect
        self.split = (-1, spec.head_dim)
        width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        bias = spec.attention_bias
        self.q_proj = nn.Linear(spec.hidden, width, bias=bias)
        self.k_proj = nn.Linear(spec.hidden, kv_width, bias=bias)
        self.v_proj = nn.Linear(spec.hidden, kv_width, bias=bias)
        self.o_proj = nn.Linear(width, spec.hidden, bias=bias)


class Attention(Projections):
    """LLaMA attention with grouped key/value heads."""

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past_key: Tensor,
        past_value: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Attends from `x` [1, kept, hidden]; further arguments and results as `DecoderLayer`."""
        query = self.dialect.rotate(self.q_proj(x).unflatten(2, self.split), cos, sin)
        key = self.dialect.rotate(self.k_proj(x).unflatten(2, self.split), cos, sin)
        value = self.v_proj(x).unflatten(2, self.split)
        keys = torch.cat((past_key, key), dim=1)
        values = torch.cat((past_value, value), dim=1)
        mixed = self.dialect.attend(query, keys, values, mask)
        return self.o_proj(mixed), key, value, query, keys


class FeedForward(nn.Module):
    """LLaMA's gated feed-forward block."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden, spec.intermediate, bias=spec.mlp_bias)
        self.up_proj = nn.Linear(spec.hidden, spec.intermediate, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate, spec.hidden, bias=spec.mlp_bias)
        self.activation = ACT2FN[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` [1, kept, hidden]."""
        gate = self.activation(self.gate_proj(x))
        down: Tensor = self.down_proj(gate * self.up_proj(x))
        return down


class LayerParts(nn.Module):
    """What a LLaMA decoder layer consists of."""

    def __init__(self, spec: TextSpec, dialect: Dialect) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(spec.hidden, spec.rms_norm_eps, dialect)
        self.self_attn = Attention(spec, dialect)
        self.post_attention_layernorm = RmsNorm(spec.hidden, spec.rms_norm_eps, dialect)
        self.mlp = FeedForward(spec)


class DecoderLayer(LayerParts):
    """One LLaMA decoder layer that returns keys and values of the new positions only."""

    def forward(
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past_key: Tensor,
        past_value: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Runs the layer.

        Args:
            hidden_states: [1, kept, hidden].
            cos: [1, kept, head_dim / 2].
            sin: Like `cos`.
            mask: The dialect's mask for [kept, key].
            past_key: [1, past, kv_heads, head_dim].
            past_value: Like `past_key`.

        Returns:
            hidden_states [1, kept, hidden]; the new key and value [1, kept, kv_heads, head_dim];
            for the scorer the query [1, kept, heads, head_dim] and all keys
            [1, key, kv_heads, head_dim].
        """
        x = self.input_layernorm(hidden_states)
        mixed, key, value, query, keys = self.self_attn(x, cos, sin, mask, past_key, past_value)
        hidden_states = hidden_states + mixed
        x = self.post_attention_layernorm(hidden_states)
        return hidden_states + self.mlp(x), key, value, query, keys


class AttentionScorer(nn.Module):
    """What a pruning point reads from the attention of the layer before it.

    Never a [heads, kept, key] tensor: the mean over visual queries of pre-softmax scores is one
    product of the mean query with the keys, and the post-softmax rows are computed for the text
    rows only (reconstructed, see docs/pruning.md).
    """

    def __init__(self, dialect: Dialect) -> None:
        super().__init__()
        self.dialect = dialect

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        keys: Tensor,
        mask: Tensor,
        visual_weights: Tensor,
        text_rows: Tensor,
        text_weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores the new positions.

        Args:
            query: [1, kept, heads, head_dim], after RoPE.
            key: [1, kept, kv_heads, head_dim], after RoPE: the new positions.
            keys: [1, past + kept, kv_heads, head_dim]: all positions.
            mask: The dialect's mask for [kept, past + kept].
            visual_weights: [kept], float32; 1 / count on visual tokens, else 0.
            text_rows: [rows], int64, positions in the kept sequence.
            text_weights: [rows], float32; 1 / count, or 0 where there is no text.

        Returns:
            Pre-softmax attention received from the mean visual query and post-softmax attention
            received from the text rows, heads averaged, both [kept] in float32; and the latter
            row by row, [rows, kept].
        """
        query, key, keys = query.float(), key.float(), keys.float()
        heads, kept = query.shape[2], query.shape[1]
        mean_query = torch.unflatten(visual_weights @ query.flatten(2), 1, (1, heads, -1))
        from_visual = grouped_scores(mean_query, key).mean((1, 2)).flatten()

        scores = grouped_scores(query.index_select(1, text_rows), keys)
        scores = self.dialect.apply_mask(scores, mask.index_select(0, text_rows))
        attention = scores.softmax(-1).mean((1, 2))[0]
        from_rows = attention[:, attention.shape[1] - kept :]
        return from_visual, text_weights @ from_rows, from_rows


class Head(nn.Module):
    """Final norm and LM head, or `rows` of it, on the last position."""

    def __init__(self, spec: TextSpec, rows: int, dialect: Dialect) -> None:
        super().__init__()
        self.norm = RmsNorm(spec.hidden, spec.rms_norm_eps, dialect)
        self.lm_head = nn.Linear(spec.hidden, rows, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Logits [1, rows] in float32 from `hidden_states` [1, tokens, hidden]."""
        last = self.norm(hidden_states[:, -1])
        weight = self.lm_head.weight
        # A Gemm takes the table [vocabulary, hidden] as it is stored, so that a tied head reads
        # the very file of the embedding.
        logits: Tensor = torch.onnx.ops.symbolic(
            "Gemm",
            (last, weight),
            {"transB": 1},
            dtype=last.dtype,
            shape=(1, weight.shape[0]),
            version=13,
        )
        return logits.float()
