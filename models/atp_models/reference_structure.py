"""YOPO's structural pruning simulated in PyTorch: what structured bundles are compared with.

As the authors' code does (arXiv 2410.06169), all of the work is done, over whole attention
matrices, and hidden by boolean masks: neighbours before the softmax, heads after it and without
renormalising, so that the mass of dropped keys stays in the denominators. What it leaves open,
several images and class tokens, is said at `visible_keys` and `Tokens.placed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from atp_models.reference_layers import LayerRunner, LayerStep, Scores, Tokens, attention_scores
from atp_runtime.structure import FAST, Structure


@dataclass(frozen=True, eq=False)
class _Past:
    """What a layer has cached: keys and values [1, kv_heads, past, head_dim]."""

    key: Tensor
    value: Tensor


class StructuredRunner:
    """Runs decoder layers as `LayerRunner` does, visual tokens being spared work.

    Args:
        rotary: The decoder's rotary embedding.
        structure: What they are spared. In the mode "fast", layers from the cut on are whole: who
            keeps visual tokens from entering them is the caller.
    """

    def __init__(self, rotary: nn.Module, structure: Structure) -> None:
        self._rotary = rotary
        self._structure = structure
        self._past: dict[int, _Past] = {}

    @torch.inference_mode()
    def run(
        self, layer: nn.Module, hidden: Tensor, tokens: Tokens, asked: Tensor | None = None
    ) -> LayerStep:
        """Runs one layer on one chunk, see `LayerRunner.run`.

        Values that no later query may count are zeros in `LayerStep.value`: with them a cache
        needs no other mark. Scores are means over the heads that are kept.
        """
        module: Any = layer
        attention = module.self_attn
        number, width = int(attention.layer_idx), int(attention.head_dim)
        placed = tokens.placed
        x = module.input_layernorm(hidden)
        query, key, value = (
            torch.unflatten(projection(x), 2, (-1, width)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        unrotated = query.transpose(1, 2).flatten(2)
        rotation = self._rotary(hidden, tokens.positions.unsqueeze(0))
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        shown, kept = self._masks(number, query.shape[1])
        group = query.shape[1] // key.shape[1]
        counted = ~placed | shown[::group].unsqueeze(1)  # [kv_heads, kept]
        value = value * counted.unsqueeze(-1)

        past = self._past.get(number, _Past(key[:, :, :0], value[:, :, :0]))
        keys, values = torch.cat((past.key, key), 2), torch.cat((past.value, value), 2)
        self._past[number] = _Past(keys, values)
        products = query @ keys.repeat_interleave(group, 1).transpose(2, 3) / width**0.5
        visible = visible_keys(tokens, past.key.shape[2], self._window(number))
        weights = products.masked_fill(~visible, torch.finfo(torch.float32).min).softmax(-1)
        mixed = weights @ values.repeat_interleave(group, 1)
        mixed = mixed * (~placed | kept.unsqueeze(1)).unsqueeze(-1)
        hidden_between = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))

        left = hidden_between + self._feed_forward(module, hidden_between, placed, number)
        scores = None
        if asked is not None:
            among_new = weights[..., past.key.shape[2] :]
            scores = _scores(query, key, among_new, tokens.visual, asked, kept)
        taken = key.transpose(1, 2), value.transpose(1, 2)
        return LayerStep(tokens, hidden, left, unrotated, *taken, scores)

    def _window(self, layer: int) -> int | None:
        return self._structure.window if self._structure.covers(layer) else None

    def _masks(self, layer: int, heads: int) -> tuple[Tensor, Tensor]:
        """In which heads visual values count, and which visual tokens get: bool [heads]."""
        structure = self._structure
        kept = torch.ones(heads, dtype=torch.bool)
        if not structure.covers(layer):
            return kept, kept
        kept[:] = False
        kept[list(structure.kept_heads(layer, heads))] = True
        cut = structure.mode != FAST and structure.cut_layer is not None
        gone = cut and layer >= (structure.cut_layer or 0)
        return (torch.zeros_like(kept) if gone else kept), kept

    def _feed_forward(self, layer: Any, hidden: Tensor, placed: Tensor, number: int) -> Tensor:
        mlp, x = layer.mlp, layer.post_attention_layernorm(hidden)
        inner = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        if self._structure.covers(number):
            used = inner.shape[2] // self._structure.ffn_ratio
            inner[:, placed, used:] = 0
        found: Tensor = mlp.down_proj(inner)
        return found


def layer_runner(rotary: nn.Module, structure: Structure | None) -> LayerRunner | StructuredRunner:
    """What runs layers that spare visual tokens work, or do not.

    Args:
        rotary: The decoder's rotary embedding.
        structure: None for layers as they are.
    """
    return LayerRunner(rotary) if structure is None else StructuredRunner(rotary, structure)


def visible_keys(tokens: Tokens, past: int, window: int | None) -> Tensor:
    """Which keys a token attends to: bool [kept, past + kept].

    Text sees what is cached and what stands before it. With a window, so does a visual token, but
    of the visual tokens of its chunk it sees those of its own image that lie within the window,
    whether they come before it or after.
    """
    position = tokens.positions
    visible = position.unsqueeze(1) >= position.unsqueeze(0)
    if window is not None and tokens.places is not None:
        placed = tokens.placed
        apart = (tokens.places.unsqueeze(1) - tokens.places.unsqueeze(0)).abs()
        near = (apart[..., 0] == 0) & (apart[..., 1:] <= window // 2).all(-1)
        between = placed.unsqueeze(1) & placed.unsqueeze(0)
        visible = torch.where(between, near, visible)
    return nn.functional.pad(visible, (past, 0), value=True)


def _scores(
    query: Tensor, key: Tensor, weights: Tensor, visual: Tensor, asked: Tensor, kept: Tensor
) -> Scores:
    if not bool(kept.any()):
        nothing = torch.zeros(visual.shape[0])
        rows = torch.zeros(max(1, int(asked.sum())), visual.shape[0])
        return Scores(nothing, nothing, torch.zeros_like(visual), rows)
    group = query.shape[1] // key.shape[1]
    keys = key.repeat_interleave(group, 1)
    return attention_scores(query[:, kept], keys[:, kept], weights[:, kept], visual, asked)
