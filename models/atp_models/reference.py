"""The network in PyTorch, run by Transformers' own modules: what bundles are compared with.

`LlavaReference.dense` is Transformers' forward as it is. `LlavaReference.pruned` calls the same
decoder layers one by one, drops tokens before the layers it is told, and computes the scores of
a pruning point from whole attention matrices. Nothing of the exporter's graphs is used here,
so that an error there cannot hide.

Everything is float32, one sequence at a time, on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from atp_models.architecture import ModelSpec
from atp_models.checkpoint import Checkpoint
from atp_models.quantised.reference import round_inputs
from atp_models.quiet import quiet_transformers
from atp_models.reference_compressor import Compressor
from atp_models.reference_layers import ATTENTION, LayerStep, Survivors, Tokens
from atp_models.reference_queries import asked_tokens
from atp_models.reference_routing import run_routed
from atp_models.reference_structure import layer_runner
from atp_models.reference_vision import TowerMerged, VisionStep, see
from atp_runtime.structure import Structure


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

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        routers: Mapping[int, Tensor] = MappingProxyType({}),
        compressor: Compressor | None = None,
    ) -> None:
        self.model = model
        self.routers = routers
        self.compressor = compressor

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        routers: Mapping[int, Tensor] = MappingProxyType({}),
        compressor: Compressor | None = None,
    ) -> LlavaReference:
        """Loads the whole checkpoint directory in float32, 4 bytes per parameter.

        Args:
            checkpoint: The directory.
            routers: Those of routed layers, [hidden] each, see `atp_models.routers`.
            compressor: What stands before the projector.
        """
        with quiet_transformers():
            model = LlavaForConditionalGeneration.from_pretrained(
                checkpoint,
                dtype=torch.float32,
                attn_implementation=ATTENTION,
                local_files_only=True,
            )
        return cls(model.eval(), routers, compressor)

    @classmethod
    def of_quantised(
        cls,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        routers: Mapping[int, Tensor] = MappingProxyType({}),
        compressor: Compressor | None = None,
    ) -> LlavaReference:
        """A quantised checkpoint in float32, its integers read as what they stand for.

        Linear layers whose input its tool rounds to INT8 round it, too.
        """
        config = spec.transformers_config()
        config._attn_implementation = ATTENTION  # noqa: SLF001 - how Transformers wants it
        with no_init_weights():
            model = LlavaForConditionalGeneration(config).float()
        state = {name: checkpoint.read(name).float() for name in spec.tensor_shapes()}
        # What a checkpoint may lack is never read, see `ModelSpec.tensor_shapes`.
        model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        round_inputs(model, checkpoint)
        return cls(model.eval(), routers, compressor)

    def dense(self) -> DenseRun:
        """A new sequence through Transformers' own forward."""
        return DenseRun(self.model)

    def pruned(
        self, points: Mapping[int, str] | None = None, structure: Structure | None = None
    ) -> PrunedRun:
        """A new sequence through the pruned decoder, whose layers with routers are routed.

        Args:
            points: Layers before which tokens may be dropped, and whose attention the scores
                there ask for, see `asked_tokens`.
            structure: Which work visual tokens are spared.
        """
        return PrunedRun(self, points or {}, structure)

    def see(
        self,
        pixel_values: Tensor,
        merged: Sequence[TowerMerged] = (),
        told: Tensor | None = None,
    ) -> VisionStep:
        """Runs the vision tower and the projector on [images, 3, height, width].

        Args:
            pixel_values: The images.
            merged: What is merged between the tower's layers.
            told: The mean of the question's embeddings [hidden], for the compressor; None leaves
                that away.
        """
        compress = None
        if told is not None and self.compressor is not None:
            compress = partial(self.compressor.of, text=told)
        return see(self.model.model, pixel_values, merged, compress)

    @torch.inference_mode()
    def project(self, selected: Tensor) -> Tensor:
        """Image features [images, tokens, hidden] of what the projector takes."""
        features: Tensor = self.model.model.multi_modal_projector(selected)
        return features

    @torch.inference_mode()
    def embed(self, ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """The decoder's input [1, tokens, hidden].

        Args:
            ids: int64 [tokens], a placeholder for each image feature.
            image_features: [images, tokens, hidden], or of all images [1, tokens, hidden], or None
                without images.
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
        return self._run(len(ids), input_ids=ids.unsqueeze(0), pixel_values=pixel_values)

    @torch.inference_mode()
    def embedded(self, hidden: Tensor) -> DenseStep:
        """Runs a prompt [1, tokens, hidden], see `LlavaReference.embed`."""
        return self._run(hidden.shape[1], inputs_embeds=hidden)

    def _run(self, tokens: int, **inputs: Tensor | None) -> DenseStep:
        logits = self._model(
            **inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits
        layers = self._cache.layers
        # Copies: the cache is replaced by a longer one with the next chunk.
        keys, values = (
            tuple(kv[:, :, -tokens:].transpose(1, 2).clone() for kv in cached)
            for cached in ([x.keys for x in layers], [x.values for x in layers])
        )
        return DenseStep(logits[:, -1], keys, values)


class PrunedRun:
    """One sequence, chunk after chunk, tokens dropped on the way.

    What is left keeps its position; every layer caches the tokens that entered it; the next
    chunk goes on at the position where the unpruned sequence ends.
    """

    def __init__(
        self,
        reference: LlavaReference,
        points: Mapping[int, str],
        structure: Structure | None = None,
    ) -> None:
        self._reference = reference
        decoder = reference.model.model.language_model
        self._layers = decoder.layers
        self._runner = layer_runner(decoder.rotary_emb, structure)
        self._points = points
        self._position = 0

    def forward(
        self,
        hidden: Tensor,
        visual: Tensor,
        keep: Mapping[int, Survivors] | None = None,
        places: Tensor | None = None,
    ) -> PrunedStep:
        """Runs a prompt, or the next token.

        Args:
            hidden: [1, tokens, hidden], see `LlavaReference.embed`.
            visual: bool [tokens], which of them are image features.
            keep: By layer, the tokens that enter it, of those that entered the layer before it; of
                a routed layer, those that go through it.
            places: See `Tokens`; a structure asks for them.
        """
        positions = torch.arange(self._position, self._position + hidden.shape[1])
        self._position += hidden.shape[1]
        tokens, steps = Tokens(positions, visual, places), []
        asked = {
            layer: positions[asked_tokens(queries, hidden, visual)]
            for layer, queries in self._points.items()
        }
        routers, scores = self._reference.routers, None
        for number, layer in enumerate(self._layers):
            survivors = (keep or {}).get(number)
            if scores is not None:
                through = torch.arange(len(scores)) if survivors is None else survivors.indices
                step = run_routed(self._runner, layer, hidden, tokens, through, scores)
            else:
                if survivors is not None:
                    hidden, tokens = survivors.of(hidden, tokens)
                who = asked.get(number + 1)
                among = None if who is None else torch.isin(tokens.positions, who)
                step = self._runner.run(layer, hidden, tokens, among)
            hidden = step.left
            scores = hidden[0] @ routers[number + 1] if number + 1 in routers else None
            steps.append(replace(step, router=scores))
        return PrunedStep(tuple(steps), self._reference.head(hidden))
