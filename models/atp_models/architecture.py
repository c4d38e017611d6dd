"""What network a checkpoint describes, in the few numbers the rest of the project needs.

Every number comes from Transformers' own config classes, RoPE rules and module shapes, so
defaults that a config.json leaves out are theirs. What the project cannot compile is refused
here, by name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import LlavaConfig, LlavaForConditionalGeneration

from atp_models.checkpoint import Checkpoint
from atp_models.config_refusals import check_activation, unsupported, unusable
from atp_models.quantised.methods import FIELD
from atp_models.text_spec import (
    HEAD,
    RopeSpec,
    TextSpec,
    read_text_spec,
    refuse_other_decoders,
)
from atp_models.vision_spec import VisionSpec, read_vision_spec, refuse_other_towers

__all__ = ["ModelSpec", "RopeSpec", "TextSpec", "VisionSpec", "read_architecture"]

# Pooling, and pre-training by masking: no LLaVA reads what these make.
_UNUSED = ("model.vision_tower.head.", "model.vision_tower.embeddings.mask_token")
_LAYER = re.compile(
    r"model\.(?P<part>language_model|vision_tower)\.(?:encoder\.)?layers?\.(?P<index>\d+)\."
)


@dataclass(frozen=True)
class ModelSpec:
    """A LLaVA: tower, projector, decoder.

    Attributes:
        text: The decoder.
        vision: The tower.
        image_token_id: Token id that stands for one image feature in a prompt.
        projector_activation: Transformers' name of the activation between its two layers.
        projector_bias: Whether its two layers have biases.
    """

    text: TextSpec
    vision: VisionSpec
    image_token_id: int
    projector_activation: str
    projector_bias: bool
    _config: LlavaConfig = field(repr=False, compare=False)
    _shapes: Mapping[str, tuple[int, ...]] = field(repr=False, compare=False)

    def transformers_config(self) -> LlavaConfig:
        """A config for building Transformers modules; a copy, free to change."""
        return copy.deepcopy(self._config)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors the architecture needs, by canonical name.

        The LM head is among them only where it is not the embedding.
        """
        return {
            name: shape
            for name, shape in self._shapes.items()
            if not name.startswith(_UNUSED) and not (name == HEAD and self.text.tied_embeddings)
        }

    def is_beyond_depth(self, name: str) -> bool:
        """Whether a canonical name belongs to a layer deeper than the network has."""
        match = _LAYER.match(name)
        if match is None:
            return False
        depth = self.text.layers if match["part"] == "language_model" else self.vision.layers
        return int(match["index"]) >= depth


def read_architecture(checkpoint: Checkpoint) -> ModelSpec:
    """Derives the architecture from `config.json` and the image processor's file.

    Args:
        checkpoint: An opened checkpoint; its tensors are consulted only for whether tied
            embeddings were stored twice and differ.

    Returns:
        The specification; whether the weights fit it is `check_tensors`' business.

    Raises:
        InputError: The config is malformed, or describes something that is not supported.
    """
    _refuse_other_models(checkpoint)
    config = _parsed(checkpoint)
    check_activation(checkpoint, config.projector_hidden_act, "projector_hidden_act")
    text = read_text_spec(checkpoint, config)
    if not 0 <= config.image_token_id < text.vocabulary:
        raise unusable(
            checkpoint,
            f"image_token_index {config.image_token_id} lies outside the vocabulary",
            f"the embedding has {text.vocabulary} rows, and image tokens are looked up too",
        )
    return ModelSpec(
        text=text,
        vision=read_vision_spec(checkpoint, config),
        image_token_id=config.image_token_id,
        projector_activation=config.projector_hidden_act,
        projector_bias=config.multimodal_projector_bias,
        _config=config,
        _shapes=_module_shapes(checkpoint, config),
    )


def _refuse_other_models(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if (kind := config.get("model_type")) != "llava":
        raise unsupported(checkpoint, f"model_type {kind!r}", "'llava'")
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part), dict):
            raise unusable(
                checkpoint,
                f"no {part}",
                "this may be the layout of the original LLaVA repository, not Transformers'",
                "convert it with Transformers' convert_llava_weights_to_hf.py, "
                "or use the `-hf` version of the checkpoint",
            )
    refuse_other_decoders(checkpoint)
    refuse_other_towers(checkpoint)


def _parsed(checkpoint: Checkpoint) -> LlavaConfig:
    try:
        return LlavaConfig.from_dict(_of_floats(checkpoint.config))
    except (StrictDataclassError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise unusable(
            checkpoint,
            f"Transformers refuses it ({' '.join(str(error).split())})",
            "a field is missing or has a value of the wrong kind",
        ) from error


def _of_floats(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without quantisation: quantised weights are read as what they stand for."""
    plain = {key: copy.deepcopy(value) for key, value in config.items() if key != FIELD}
    for part in ("text_config", "vision_config"):
        plain[part].pop(FIELD, None)
    return plain


def _module_shapes(checkpoint: Checkpoint, config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the module that Transformers builds, nothing allocated."""
    try:
        with torch.device("meta"):
            state = LlavaForConditionalGeneration(copy.deepcopy(config)).state_dict()
    except (TypeError, ValueError, KeyError, RuntimeError, ArithmeticError) as error:
        raise unusable(
            checkpoint,
            f"Transformers cannot build this network ({' '.join(str(error).split())})",
            "its sizes do not fit together",
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
