"""Decoder layers in which work that visual tokens are to be spared is done and hidden.

This is how YOPO's authors measure answers (arXiv 2410.06169): nothing is faster. All work is done,
by all rows; what is not to count is multiplied by zero behind the softmax, which is not
renormalised. For layers that skip the work see `structured`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atp_export.graphs.dialects import Dialect
from atp_export.graphs.pieces import FeedForward, Projections, RmsNorm
from atp_models.architecture import TextSpec


class MaskedEntry(nn.Module):
    """Makes the mask that all layers of a segment share.

    Args:
        dialect: What to write.
        window: See `Structure`.
    """

    def __init__(self, dialect: Dialect, window: int | None) -> None:
        super().__init__()
        self.dialect = dialect
        self.window = window

    def forward(
        self, position_ids: Tensor, past_length: Tensor, past_key: Tensor, visual_places: Tensor
    ) -> Tensor:
        """What each token sees.

        Args:
            position_ids: [1, kept], int64.
            past_length: [1], int64, how many of the `past` positions are filled.
            past_key: [1, past, kv_heads, head_dim] of any layer, for its length.
            visual_places: [kept, 3], int64: image, row and column; -1 for what has no place.

        Returns:
            The dialect's mask for [kept, past + kept].
        """
        position = position_ids[0]
        visible = position.unsqueeze(1) >= position.unsqueeze(0)
        if self.window is not None:
            placed = visual_places[:, 1] >= 0
            apart = (visual_places.unsqueeze(1) - visual_places.unsqueeze(0)).abs()
            far = apart[..., 1:].amax(-1) > self.window // 2
            near = (apart[..., 0] == 0) & ~far
            both = placed.unsqueeze(1) & placed.unsqueeze(0)
            # Not `where`: ONNX Runtime chooses between numbers only.
            visible = (both & near) | (~both & visible)
        filled = torch.arange(past_key.shape[1], device=position.device) < past_length
        past = filled.unsqueeze(0).expand(position.shape[0], -1)
        return self.dialect.mask(torch.cat((past, visible), 1))


class MaskedAttention(Projections):
    """LLaMA attention of whose heads visual tokens are hidden from some."""

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        past: tuple[Tensor, Tensor],
        others: Tensor,
        heads: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attends from `x` [1, kept, hidden].

        Args:
            x: Normalised hidden states.
            rotation: cos and sin.
            mask: The dialect's mask for [kept, key].
            past: Cached keys and values.
            others: Like `x`, [1, kept, 1, 1]: 0 for tokens with a place, else 1.
            heads: int64 of 0 and 1: the heads that visual tokens get something of [heads], and
                those in which their values count [kv_heads].

        Returns:
            Like `x`; new keys and values.
        """
        query = self.dialect.rotate(torch.unflatten(self.q_proj(x), 2, self.split), *rotation)
        key = self.dialect.rotate(torch.unflatten(self.k_proj(x), 2, self.split), *rotation)
        got, counted = (torch.maximum(others, it.to(x.dtype).unsqueeze(1)) for it in heads)
        # Zeros in the values are zeros in the weights, and stay so for later queries.
        value = torch.unflatten(self.v_proj(x), 2, self.split) * counted
        keys, values = torch.cat((past[0], key), 1), torch.cat((past[1], value), 1)
        mixed = self.dialect.attend(query, keys, values, mask)
        given = (torch.unflatten(mixed, 2, self.split) * got).flatten(2)
        return self.o_proj(given), key, value


class MaskedLayer(nn.Module):
    """One LLaMA decoder layer that hides from visual tokens what they are to be spared.

    Args:
        spec: The decoder.
        dialect: What to write.
        ratio: r; visual tokens are left the first 1/r of the feed-forward's channels.
    """

    def __init__(self, spec: TextSpec, dialect: Dialect, ratio: int) -> None:
        super().__init__()
        self.used = spec.intermediate // ratio
        self.input_layernorm = RmsNorm(spec.hidden, spec.rms_norm_eps, dialect)
        self.self_attn = MaskedAttention(spec, dialect)
        self.post_attention_layernorm = RmsNorm(spec.hidden, spec.rms_norm_eps, dialect)
        self.mlp = FeedForward(spec)

    def forward(  # noqa: PLR0913, PLR0917 - a traced module takes tensors
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        visual_places: Tensor,
        heads_given: Tensor,
        heads_counted: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the layer.

        Args:
            hidden_states: [1, kept, hidden].
            cos: [1, kept, head_dim / 2].
            sin: Like `cos`.
            mask: The dialect's mask for [kept, key].
            past_key: [1, past, kv_heads, head_dim].
            past_value: Like `past_key`.
            visual_places: See `MaskedEntry`.
            heads_given: See `MaskedAttention`.
            heads_counted: Likewise.

        Returns:
            hidden_states [1, kept, hidden] and the new key and value [1, kept, kv_heads, head_dim].
        """
        others = (visual_places[:, 1] < 0).to(hidden_states.dtype).reshape(1, -1, 1, 1)
        x = self.input_layernorm(hidden_states)
        mixed, key, value = self.self_attn(
            x, (cos, sin), mask, (past_key, past_value), others, (heads_given, heads_counted)
        )
        hidden_states = hidden_states + mixed
        x = self.post_attention_layernorm(hidden_states)
        inner = self.mlp.activation(self.mlp.gate_proj(x)) * self.mlp.up_proj(x)
        used = torch.arange(inner.shape[2]) < self.used
        inner = inner * torch.maximum(others[..., 0], used.to(inner.dtype))
        return hidden_states + self.mlp.down_proj(inner), key, value
