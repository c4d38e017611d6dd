"""The vision stage's pieces: Transformers' own modules around our attention.

Of a tower one layer is traced, whichever its depth, as of the decoder; layers above the last one
whose features are used are not called at all. Parameter names are the checkpoint's: those of
entry and exit below `model.`, those of a layer below `layer_prefix`.

Axis names: `images`, `patches` of an image with its class token, if the tower has one.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from atp_export.graphs.dialects import Dialect, grouped_scores
from atp_models.architecture import ModelSpec


class VisionEntry(nn.Module):
    """Everything before a tower's layers."""

    def __init__(self, spec: ModelSpec, dialect: Dialect, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.vision_tower = _tower(spec, dialect, layers=0)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Hidden states [images, patches, width] from [images, 3, height, width] in float32."""
        embedded: Tensor = self.vision_tower.embeddings(pixel_values.to(self.dtype))
        if hasattr(self.vision_tower, "pre_layrnorm"):  # CLIP's, and its spelling
            embedded = self.vision_tower.pre_layrnorm(embedded)
        return embedded


def vision_layer(spec: ModelSpec, dialect: Dialect) -> nn.Module:
    """One layer of a tower, from and to hidden states [images, patches, width].

    For scorers it also gives its queries and keys, [images, patches, heads * head_dim].
    """
    layer: nn.Module = getattr(_tower(spec, dialect, layers=1).encoder, _layers_name(spec))[0]
    seen: dict[str, Tensor] = {}
    for name, module in layer.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            module.register_forward_hook(functools.partial(_note, seen, name[-len("q_proj") :]))
    run = layer.forward

    def forward(hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # No mask, as every patch sees every other; some layers insist on being told so.
        left = run(hidden_states, attention_mask=None)
        return left, seen["q_proj"], seen["k_proj"]

    layer.forward = forward
    return layer


def _note(
    seen: dict[str, Tensor], name: str, _module: nn.Module, _inputs: object, output: Tensor
) -> None:
    seen[name] = output


class ClassScorer(nn.Module):
    """How much the class token attends to each patch: one row of the layer's attention."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads = spec.vision.heads

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Post-softmax attention, heads averaged.

        Args:
            query: [images, patches, heads * head_dim].
            keys: Like `query`.

        Returns:
            [images, patches - 1] in float32, in the order of the patches.
        """
        split = (self.heads, -1)
        row = torch.unflatten(query[:, :1].float(), 2, split)
        scores = grouped_scores(row, torch.unflatten(keys.float(), 2, split))
        return scores.softmax(-1).mean((1, 2, 3))[:, 1:]


class PatchKeys(nn.Module):
    """A layer's keys of the patches, by which they are compared."""

    def __init__(self, spec: ModelSpec, *, mean: bool) -> None:
        super().__init__()
        self.heads = spec.vision.heads
        self.mean = mean

    def forward(self, keys: Tensor) -> Tensor:
        """Keys in float32, heads averaged to [images, patches - 1, head_dim] or side by side.

        Args:
            keys: [images, patches, heads * head_dim].
        """
        own = keys[:, 1:].float()
        return torch.unflatten(own, 2, (self.heads, -1)).mean(2) if self.mean else own


class ClassSimilarity(nn.Module):
    """How like the class token each patch is, where features are taken."""

    def forward(self, *states: Tensor) -> Tensor:
        """Cosines [images, patches - 1] in float32 from the chosen [images, patches, width]."""
        whole = torch.cat(states, dim=-1).float()
        units = whole / whole.pow(2).sum(-1, keepdim=True).sqrt()
        return (units[:, 1:] * units[:, :1]).sum(-1)


class PatchFeatures(nn.Module):
    """Feature selection."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.drop_first = spec.vision.select_strategy == "default"

    def forward(self, *states: Tensor) -> Tensor:
        """Features [images, tokens, width] from the chosen [images, patches, width]."""
        chosen = [state[:, 1:] if self.drop_first else state for state in states]
        return torch.cat(chosen, dim=-1)


class Projector(nn.Module):
    """The projector alone."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.multi_modal_projector = LlavaMultiModalProjector(spec.transformers_config())

    def forward(self, patch_features: Tensor) -> Tensor:
        """Image features [1, selected, hidden] from [1, selected, width]."""
        features: Tensor = self.multi_modal_projector(patch_features)
        return features


class VisionExit(nn.Module):
    """Feature selection and the projector."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.select = PatchFeatures(spec)
        self.multi_modal_projector = LlavaMultiModalProjector(spec.transformers_config())

    def forward(self, *states: Tensor) -> Tensor:
        """Image features [images, tokens, hidden] from the chosen [images, patches, width]."""
        features: Tensor = self.multi_modal_projector(self.select(*states))
        return features


def feature_layers(spec: ModelSpec) -> tuple[int, ...]:
    """Which hidden states `VisionExit` takes: 0 enters the first layer, i leaves layer i - 1."""
    chosen = spec.vision.feature_layer
    return (chosen,) if isinstance(chosen, int) else chosen


def layer_prefix(spec: ModelSpec, number: int) -> str:
    """What the checkpoint's names of a layer's parameters begin with."""
    return f"model.vision_tower.encoder.{_layers_name(spec)}.{number}."


def _layers_name(spec: ModelSpec) -> str:
    return "layer" if spec.vision.family == "dinov2" else "layers"


def _tower(spec: ModelSpec, dialect: Dialect, *, layers: int) -> Any:
    config = copy.deepcopy(spec.transformers_config().vision_config)
    config.num_hidden_layers = layers
    return AutoModel.from_config(config, attn_implementation=_register_attention(dialect))


def _register_attention(dialect: Dialect) -> str:
    """Makes the dialect's attention known to Transformers' towers; returns its name.

    Their own choices trace to shape arithmetic, masks of zeros and NaN checks in every layer.
    """

    def attend(
        _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **_: object
    ) -> tuple[Tensor, None]:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        mixed = dialect.attend(query, key, value, mask)
        return torch.unflatten(mixed, 2, (query.shape[2], -1)), None

    name = f"atp_{dialect.name}"
    AttentionInterface.register(name, attend)
    return name
