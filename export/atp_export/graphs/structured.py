"""Decoder layers that spare visual tokens work (YOPO, arXiv 2410.06169), see `Structure`.

Matrices are stored in two parts. What visual tokens use, the kept heads and the first channels of
the feed-forward, is multiplied with all rows at once; the rest, whose names end in `_language`,
with the other rows alone. So no weight is stored or read twice, and no work is done to be hidden.

In a head that is not kept, the values of visual tokens are zeros. Text rows then divide by the mass
of visual keys as if nothing were dropped, and so does every later decode step, without being told.

Axis names besides those of `pieces`: `others`, the tokens without a place on a photo; `visual`, the
rest; `blocks` of `Blocks`, with the `query` places of each and the `band` of those it sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from atp_export.graphs.dialects import Dialect
from atp_export.graphs.pieces import FeedForward, RmsNorm
from atp_export.graphs.windows import Window, attend_in_windows
from atp_models.architecture import TextSpec


@dataclass(frozen=True)
class Rows:
    """Which rows of a sequence are what.

    Attributes:
        others: int64 [others].
        slots: int64 [kept]: where each token stands in [others, visual].
    """

    others: Tensor
    slots: Tensor

    def of_others(self, x: Tensor) -> Tensor:
        """[1, others, ...] of [1, kept, ...]."""
        return x.index_select(1, self.others)

    def merge(self, others: Tensor, visual: Tensor) -> Tensor:
        """[1, kept, width] from [1, others, width] and [1, visual, width]."""
        return torch.cat((others, visual), 1).index_select(1, self.slots)

    def spread(self, others: Tensor, fill: Tensor | None = None) -> Tensor:
        """[1, kept, width] from [1, others, width]; visual rows are `fill` [width], or zeros."""
        width = others.shape[2]
        row = others.new_zeros(1, 1, width) if fill is None else fill.reshape(1, 1, width)
        slots = self.slots.clamp(max=self.others.shape[0])
        return torch.cat((others, row), 1).index_select(1, slots)


@dataclass(frozen=True)
class HeadOrder:
    """Kept heads first, then the others; and back.

    Attributes:
        order: int64 [heads]: the heads in that order.
        ranks: int64 [heads]: where each is in it.
        kv_ranks: int64 [kv_heads]: likewise of key/value heads.
        kv_kept: int64 [kept]: the key/value heads that are kept.
    """

    order: Tensor
    ranks: Tensor
    kv_ranks: Tensor
    kv_kept: Tensor


class StructuredAttention(nn.Module):
    """LLaMA attention in which visual tokens have the kept heads alone.

    Args:
        spec: The decoder.
        dialect: What to write.
        kept: Key/value heads that are kept; the query heads of each go with it.
    """

    def __init__(self, spec: TextSpec, dialect: Dialect, kept: int) -> None:
        super().__init__()
        self.dialect, self.split = dialect, (-1, spec.head_dim)
        width, bias, group = spec.head_dim, spec.attention_bias, spec.heads // spec.kv_heads
        self.kept, self.dropped = kept * width, (spec.kv_heads - kept) * width
        self.k_proj = nn.Linear(spec.hidden, spec.kv_heads * width, bias=bias)
        if self.kept:
            self.q_proj = nn.Linear(spec.hidden, self.kept * group, bias=bias)
            self.v_proj = nn.Linear(spec.hidden, self.kept, bias=bias)
            self.o_proj = nn.Linear(self.kept * group, spec.hidden, bias=bias)
        if self.dropped:
            self.q_proj_language = nn.Linear(spec.hidden, self.dropped * group, bias=bias)
            self.v_proj_language = nn.Linear(spec.hidden, self.dropped, bias=bias)
            # The output's bias is added once, to all rows.
            alone = bias and not self.kept
            self.o_proj_language = nn.Linear(self.dropped * group, spec.hidden, bias=alone)
        self.width = self.kept * group

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        past: tuple[Tensor, Tensor],
        rows: Rows,
        heads: HeadOrder,
        window: Window | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Attends from `x` [1, kept, hidden].

        Args:
            x: Normalised hidden states.
            rotation: cos and sin, see `StructuredLayer`.
            mask: The dialect's mask for [kept, key].
            past: Cached keys and values.
            rows: Which are visual.
            heads: Which are kept.
            window: Where visual tokens look; None is at all before them.

        Returns:
            Like `x`; new keys and values [1, kept, kv_heads, head_dim]; the queries of the kept
            heads [1, kept, kept heads, head_dim], or None if there are none.
        """
        others = rows.of_others(x)
        key = self.dialect.rotate(torch.unflatten(self.k_proj(x), 2, self.split), *rotation)
        value = self._value(x, others, rows, heads)
        keys, values = torch.cat((past[0], key), 1), torch.cat((past[1], value), 1)
        kept, language = self._queries(x, others, rotation, rows)
        if window is None:
            # Visual rows of dropped heads are computed and not used: without a window, attention is
            # of all rows to all keys anyway.
            spread = None if language is None else _spread_heads(language, rows)
            mixed = self._attend(kept, spread, (keys, values), mask, heads)
            kept_mixed, language_mixed = mixed[0], rows.of_others(mixed[1])
        else:
            asking = None if kept is None else rows.of_others(kept)
            masked = mask.index_select(0, rows.others)
            kept_mixed, language_mixed = self._attend(
                asking, language, (keys, values), masked, heads
            )
            if kept is not None:
                chosen = heads.kv_kept if self.dropped else None
                seen = attend_in_windows(
                    self.dialect, kept, (key, value), past, rows.others, window, chosen
                )
                kept_mixed = rows.merge(kept_mixed, seen)
        return self._project(kept_mixed, language_mixed, rows), key, value, kept

    def _value(self, x: Tensor, others: Tensor, rows: Rows, heads: HeadOrder) -> Tensor:
        """[1, kept, kv_heads, head_dim], zeros where visual tokens count nothing."""
        parts = []
        if self.kept:
            parts.append(self.v_proj(x))
        if self.dropped:
            parts.append(rows.spread(self.v_proj_language(others)))
        value = torch.unflatten(torch.cat(parts, 2), 2, self.split)
        return value.index_select(2, heads.kv_ranks) if len(parts) > 1 else value

    def _queries(
        self, x: Tensor, others: Tensor, rotation: tuple[Tensor, Tensor], rows: Rows
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of all rows in kept heads, and of the others in those that are not."""
        kept = language = None
        if self.kept:
            kept = self.dialect.rotate(torch.unflatten(self.q_proj(x), 2, self.split), *rotation)
        if self.dropped:
            cos, sin = (rows.of_others(it) for it in rotation)
            projected = torch.unflatten(self.q_proj_language(others), 2, self.split)
            language = self.dialect.rotate(projected, cos, sin)
        return kept, language

    def _attend(
        self,
        kept: Tensor | None,
        language: Tensor | None,
        cached: tuple[Tensor, Tensor],
        mask: Tensor,
        heads: HeadOrder,
    ) -> tuple[Tensor, Tensor]:
        """What the kept heads mix, and what the others do, of equally many rows."""
        if kept is None or language is None:
            query = language if kept is None else kept
            assert query is not None  # noqa: S101 - a decoder has heads
            mixed = self.dialect.attend(query, *cached, mask)
            return mixed, mixed
        query = torch.cat((kept, language), 2).index_select(2, heads.ranks)
        mixed = self.dialect.attend(query, *cached, mask)
        in_order = torch.unflatten(mixed, 2, self.split).index_select(2, heads.order).flatten(2)
        return in_order[:, :, : self.width], in_order[:, :, self.width :]

    def _project(self, kept: Tensor, language: Tensor, rows: Rows) -> Tensor:
        if not self.dropped:
            whole: Tensor = self.o_proj(kept)
            return whole
        others = self.o_proj_language(language)
        if not self.kept:
            return rows.spread(others, self.o_proj_language.bias)
        found: Tensor = self.o_proj(kept) + rows.spread(others)
        return found


def _spread_heads(query: Tensor, rows: Rows) -> Tensor:
    """[1, kept, heads, head_dim] from [1, others, heads, head_dim]."""
    return torch.unflatten(rows.spread(query.flatten(2)), 2, query.shape[2:])


class StructuredFeedForward(nn.Module):
    """LLaMA's feed-forward block, of which visual rows use the first channels.

    Args:
        spec: The decoder.
        ratio: r; visual rows use 1/r of the channels.
    """

    def __init__(self, spec: TextSpec, ratio: int) -> None:
        super().__init__()
        used, bias = spec.intermediate // ratio, spec.mlp_bias
        rest = spec.intermediate - used
        self.gate_proj = nn.Linear(spec.hidden, used, bias=bias)
        self.up_proj = nn.Linear(spec.hidden, used, bias=bias)
        self.down_proj = nn.Linear(used, spec.hidden, bias=bias)
        self.gate_proj_language = nn.Linear(spec.hidden, rest, bias=bias)
        self.up_proj_language = nn.Linear(spec.hidden, rest, bias=bias)
        self.down_proj_language = nn.Linear(rest, spec.hidden, bias=False)
        self.activation = ACT2FN[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        """What all rows have of `x` [1, kept, hidden]."""
        down: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return down

    def language(self, x: Tensor) -> Tensor:
        """What the others have besides, of their `x` [1, others, hidden]."""
        gate = self.activation(self.gate_proj_language(x))
        down: Tensor = self.down_proj_language(gate * self.up_proj_language(x))
        return down


class StructuredLayer(nn.Module):
    """One LLaMA decoder layer that spares visual tokens work.

    Args:
        spec: The decoder.
        dialect: What to write.
        kept: Key/value heads that are kept.
        ratio: Of the feed-forward.
    """

    def __init__(self, spec: TextSpec, dialect: Dialect, kept: int, ratio: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(spec.hidden, spec.rms_norm_eps, dialect)
        self.self_attn = StructuredAttention(spec, dialect, kept)
        self.post_attention_layernorm = RmsNorm(spec.hidden, spec.rms_norm_eps, dialect)
        self.mlp = FeedForward(spec) if ratio == 1 else StructuredFeedForward(spec, ratio)

    def forward(  # noqa: PLR0913, PLR0917 - a traced module takes tensors
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        other_rows: Tensor,
        row_slots: Tensor,
        head_order: Tensor,
        head_ranks: Tensor,
        kv_ranks: Tensor,
        kv_kept: Tensor,
        window_queries: Tensor | None = None,
        window_keys: Tensor | None = None,
        window_cells: Tensor | None = None,
        window_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Runs the layer.

        Args:
            hidden_states: [1, kept, hidden].
            cos: [1, kept, head_dim / 2].
            sin: Like `cos`.
            mask: The dialect's mask for [kept, key].
            past_key: [1, past, kv_heads, head_dim].
            past_value: Like `past_key`.
            other_rows: See `Rows`.
            row_slots: Likewise.
            head_order: See `HeadOrder`.
            head_ranks: Likewise.
            kv_ranks: Likewise.
            kv_kept: Likewise.
            window_queries: See `Window`; all four or none.
            window_keys: Likewise.
            window_cells: Likewise.
            window_mask: Likewise.

        Returns:
            hidden_states [1, kept, hidden]; the new key and value [1, kept, kv_heads, head_dim];
            and of the kept heads, if any, for the scorer: queries and keys of the new positions,
            and all keys.
        """
        rows = Rows(other_rows, row_slots)
        heads = HeadOrder(head_order, head_ranks, kv_ranks, kv_kept)
        window = None
        if (
            window_queries is not None
            and window_keys is not None
            and window_cells is not None
            and window_mask is not None
        ):
            window = Window(window_queries, window_keys, window_cells, window_mask)
        x = self.input_layernorm(hidden_states)
        mixed, key, value, query = self.self_attn(
            x, (cos, sin), mask, (past_key, past_value), rows, heads, window
        )
        hidden_states = hidden_states + mixed
        x = self.post_attention_layernorm(hidden_states)
        if isinstance(self.mlp, StructuredFeedForward):
            hidden_states = hidden_states + rows.spread(self.mlp.language(rows.of_others(x)))
        hidden_states = hidden_states + self.mlp(x)
        if query is None:
            return hidden_states, key, value
        scored = key.index_select(2, kv_kept)
        keys = torch.cat((past_key.index_select(2, kv_kept), scored), 1)
        return hidden_states, key, value, query, scored, keys


class NoScores(nn.Module):
    """Stands for a scorer behind a layer that keeps no heads, before a point that asks for none."""

    def forward(
        self, visual_weights: Tensor, text_weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Zeros [kept] twice, and [rows, kept], from the weights of both."""
        rows = text_weights.unsqueeze(1) * visual_weights.unsqueeze(0)
        return visual_weights * 0, visual_weights * 0, rows * 0
