"""The network in PyTorch, run by Transformers' own modules: what bundles are compared with.

`LlavaReference.dense` is Transformers' forward as it is. `LlavaReference.pruned` calls the same
decoder layers one by one, drops tokens before the layers it is told, and computes the scores of
a pruning point from whole attention matrices. Nothing of the exporter's graphs is used here,
so that an error there cannot hide.

Everything is float32, one sequence at a time, on the CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.utils import logging as transformers_logging

# The one implementation that returns its attention weights.
ATTENTION = "eager"


@dataclass(frozen=True, eq=False)
class Scores:
    """What a pruning point reads from the layer before it, heads averaged (papers.md, 1).

    Attributes:
        own: S_self [kept]: mean over the visual queries of q . k / sqrt(head_dim), before the
            softmax and without a causal mask; 0 without visual tokens.
        cross: S_cross [kept]: mean over the text rows after the last visual token of the
            attention weights; 0 without either.
    """

    own: Tensor
    cross: Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a layer needs to know about the tokens of its chunk.

    Attributes:
        positions: int64 [kept], before any pruning.
        visual: bool [kept].
    """

    positions: Tensor
    visual: Tensor

    def keep(self, indices: Tensor) -> Tokens:
        """Those at `indices` (int64 [kept])."""
        return Tokens(self.positions[indices], self.visual[indices])


@dataclass(frozen=True, eq=False)
class VisionStep:
    """What the vision tower and the projector made of images.

    Attributes:
        states: Hidden states entering each layer of the tower, and those leaving the last:
            [images, patches, width].
        features: [images, tokens, hidden].
    """

    states: tuple[Tensor, ...]
    features: Tensor


@dataclass(frozen=True, eq=False)
class LayerStep:
    """What one decoder layer did with one chunk.

    Attributes:
        tokens: Those that entered it.
        entered: Hidden states [1, kept, hidden] that it took.
        left: Hidden states [1, kept, hidden] that it gave.
        query: [1, kept, heads * head_dim], before RoPE.
        key: [1, kept, kv_heads, head_dim], after RoPE, of the chunk.
        value: Like `key`.
        scores: If they were asked for.
    """

    tokens: Tokens
    entered: Tensor
    left: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scores: Scores | None


@dataclass(frozen=True, eq=False)
class DenseStep:
    """What Transformers' forward gave for one chunk.

    Attributes:
        logits: [1, vocabulary] of the last position.
        keys: One per layer, [1, tokens, kv_heads, head_dim], after RoPE, of the chunk.
        values: Like `keys`.
    """

    logits: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class PrunedStep:
    """What the pruned decoder did with one chunk.

    Attributes:
        layers: One per decoder layer.
        logits: [1, vocabulary] of the last position.
    """

    layers: tuple[LayerStep, ...]
    logits: Tensor


class LlavaReference:
    """A checkpoint as Transformers loads it."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self.model = model

    @classmethod
    def load(cls, checkpoint: Path) -> LlavaReference:
        """Loads the whole checkpoint directory in float32, 4 bytes per parameter."""
        with _quiet():
            model = LlavaForConditionalGeneration.from_pretrained(
                checkpoint,
                dtype=torch.float32,
                attn_implementation=ATTENTION,
                local_files_only=True,
            )
        return cls(model.eval())

    def dense(self) -> DenseRun:
        """A new sequence through Transformers' own forward."""
        return DenseRun(self.model)

    def pruned(self, points: Collection[int] = ()) -> PrunedRun:
        """A new sequence through the pruned decoder.

        Args:
            points: Layers before which tokens may be dropped, and scores are computed.
        """
        return PrunedRun(self.model, points)

    def see(self, pixel_values: Tensor) -> VisionStep:
        """Runs the vision tower and the projector on [images, 3, height, width]."""
        return see(self.model.model, pixel_values)

    @torch.inference_mode()
    def embed(self, ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """The decoder's input [1, tokens, hidden].

        Args:
            ids: int64 [tokens], a placeholder for each image feature.
            image_features: [images, tokens, hidden], or None without images.
        """
        hidden: Tensor = self.model.get_input_embeddings()(ids.unsqueeze(0))
        if image_features is None:
            return hidden
        places = self.model.model.get_placeholder_mask(ids.unsqueeze(0), hidden, image_features)
        return hidden.masked_scatter(places, image_features)

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Logits [1, vocabulary] of the last position of [1, tokens, hidden]."""
        logits: Tensor = self.model.lm_head(self.model.model.language_model.norm(hidden[:, -1]))
        return logits


class DenseRun:
    """One sequence, chunk after chunk, every token kept."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._model = model
        self._cache = DynamicCache()

    @torch.inference_mode()
    def forward(self, ids: Tensor, pixel_values: Tensor | None = None) -> DenseStep:
        """Runs a prompt, or the next token.

        Args:
            ids: int64 [tokens], a placeholder for each image feature.
            pixel_values: [images, 3, height, width], or None without images.
        """
        logits = self._model(
            input_ids=ids.unsqueeze(0),
            pixel_values=pixel_values,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        layers = self._cache.layers
        # Copies: the cache is replaced by a longer one with the next chunk.
        keys, values = (
            tuple(kv[:, :, -len(ids) :].transpose(1, 2).clone() for kv in cached)
            for cached in ([x.keys for x in layers], [x.values for x in layers])
        )
        return DenseStep(logits[:, -1], keys, values)


class PrunedRun:
    """One sequence, chunk after chunk, tokens dropped on the way.

    What is left keeps its position; every layer caches the tokens that entered it; the next
    chunk goes on at the position where the unpruned sequence ends.
    """

    def __init__(self, model: LlavaForConditionalGeneration, points: Collection[int]) -> None:
        self._reference = LlavaReference(model)
        decoder = model.model.language_model
        self._layers = decoder.layers
        self._runner = LayerRunner(decoder.rotary_emb)
        self._points = frozenset(points)
        self._position = 0

    def forward(
        self, hidden: Tensor, visual: Tensor, keep: Mapping[int, Tensor] | None = None
    ) -> PrunedStep:
        """Runs a prompt, or the next token.

        Args:
            hidden: [1, tokens, hidden], see `LlavaReference.embed`.
            visual: bool [tokens], which of them are image features.
            keep: By layer, the tokens that enter it: int64 [kept], rising, indices into the
                tokens that entered the layer before it.
        """
        positions = torch.arange(self._position, self._position + hidden.shape[1])
        self._position += hidden.shape[1]
        tokens, steps = Tokens(positions, visual), []
        for number, layer in enumerate(self._layers):
            if keep and number in keep:
                hidden, tokens = hidden[:, keep[number]], tokens.keep(keep[number])
            scored = number + 1 in self._points
            steps.append(self._runner.run(layer, hidden, tokens, scored=scored))
            hidden = steps[-1].left
        return PrunedStep(tuple(steps), self._reference.head(hidden))


class LayerRunner:
    """Runs decoder layers on chunk after chunk and keeps each one's keys and values.

    Args:
        rotary: The decoder's rotary embedding.
    """

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = rotary
        self._cache = DynamicCache()

    @torch.inference_mode()
    def run(self, layer: nn.Module, hidden: Tensor, tokens: Tokens, *, scored: bool) -> LayerStep:
        """Runs one layer on one chunk.

        Args:
            layer: A decoder layer of Transformers, its attention `ATTENTION`.
            hidden: [1, kept, hidden].
            tokens: What they are.
            scored: Whether to compute `Scores`.
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
        if scored:
            heads = torch.unflatten(query, 2, (-1, attention.head_dim)).transpose(1, 2)
            rotated, _ = apply_rotary_pos_emb(heads, heads, *rotation)
            weights = seen["attention"][..., past:]
            scores = attention_scores(rotated, cached.keys[:, :, past:], weights, tokens.visual)
        return LayerStep(tokens, hidden, left, query, key, value, scores)


@torch.inference_mode()
def see(model: Any, pixel_values: Tensor) -> VisionStep:
    """Runs the vision tower and the projector of a `LlavaModel`."""
    outputs = model.get_image_features(pixel_values, output_hidden_states=True)
    return VisionStep(tuple(outputs.hidden_states), torch.stack(tuple(outputs.pooler_output)))


def attention_scores(query: Tensor, key: Tensor, weights: Tensor, visual: Tensor) -> Scores:
    """S_self and S_cross, from whole matrices.

    Args:
        query: [1, heads, kept, head_dim], after RoPE.
        key: [1, kv_heads, kept, head_dim], after RoPE.
        weights: Attention [1, heads, kept, kept] of the chunk to itself, after the softmax.
        visual: bool [kept].
    """
    nothing = torch.zeros(visual.shape[0])
    if not bool(visual.any()):
        return Scores(nothing, nothing)
    groups = query.shape[1] // key.shape[1]
    products = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3)
    own = (products / query.shape[3] ** 0.5)[0].mean(0)[visual].mean(0)
    last = int(visual.nonzero()[-1])
    after = weights[0].mean(0)[last + 1 :]
    return Scores(own, after.mean(0) if len(after) else nothing)


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Transformers' loading bars and remarks off the screen."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
