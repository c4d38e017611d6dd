"""A decoder layer that some visual tokens skip, and the router that ranks them (VideoLLM-MoD).

As everywhere, what goes through is decided between two segments: the router ends the one before,
the layer is a segment of its own and gathers; the rows that went through are then written over
those that entered.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atp_export.graphs.pieces import LayerParts


class RoutedLayer(LayerParts):
    """A `DecoderLayer` for some of the tokens of a sequence (arXiv 2404.02258, eq. 1)."""

    def forward(
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        route_weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Runs the layer on what goes through it.

        Args:
            hidden_states: As all that follow, see `DecoderLayer`.
            cos: Likewise.
            sin: Likewise.
            mask: Likewise.
            past_key: Likewise.
            past_value: Likewise.
            route_weights: [kept], float32, how much of its update each token gets.

        Returns:
            As `DecoderLayer`.
        """
        x = self.input_layernorm(hidden_states)
        mixed, key, value, query, keys = self.self_attn(x, cos, sin, mask, past_key, past_value)
        x = self.post_attention_layernorm(hidden_states + mixed)
        update = (mixed + self.mlp(x)).float() * route_weights.unsqueeze(-1)
        return hidden_states + update.to(hidden_states.dtype), key, value, query, keys


class SegmentExit(nn.Module):
    """Brings what skipped a segment back."""

    def forward(self, hidden_states: Tensor, entered: Tensor, keep_indices: Tensor) -> Tensor:
        """Writes the rows that went through over those that entered.

        Args:
            hidden_states: [1, kept, hidden].
            entered: [1, tokens, hidden].
            keep_indices: [kept], int64, ascending: where among them these are.

        Returns:
            [1, tokens, hidden].
        """
        left: Tensor = torch.onnx.ops.symbolic(
            "ScatterND",
            (entered[0], keep_indices.unsqueeze(1), hidden_states[0]),
            dtype=entered.dtype,
            shape=(entered.shape[1], entered.shape[2]),
            version=13,
        )
        return left.unsqueeze(0)


class RouterScorer(nn.Module):
    """The router of the layer behind a segment: one linear layer without a bias, in float32."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden, dtype=torch.float32))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Scores [tokens] in float32 of `hidden_states` [1, tokens, hidden]."""
        return nn.functional.linear(hidden_states[0].float(), self.weight).squeeze(-1)
