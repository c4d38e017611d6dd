"""A checkpoint directory, loaded for training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    LlavaForConditionalGeneration,
)

from atp_models.architecture import ModelSpec, read_architecture
from atp_models.atp import FILE_NAME as MODULES
from atp_models.atp import AtpModules
from atp_models.checkpoint import Checkpoint, check_tensors
from atp_models.pruning_config import PruningConfig
from atp_models.quiet import quiet_transformers
from atp_models.training.packed_attention import NAME as ATTENTION
from atp_models.training.packing import PatchGrid
from atp_runtime.errors import InputError


@dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint whose headers were read and checked.

    Attributes:
        checkpoint: The directory.
        spec: Its architecture.
    """

    checkpoint: Checkpoint
    spec: ModelSpec

    @classmethod
    def open(cls, path: Path) -> Source:
        """Reads headers, no weights.

        Raises:
            InputError: It is no LLaVA checkpoint that this project supports, or it is quantised.
        """
        checkpoint = Checkpoint.open(path)
        if checkpoint.quantised:
            raise InputError(
                f"{path} holds {len(checkpoint.quantised)} quantised layers",
                why="integers cannot be trained",
                fix="train the checkpoint that it was made of",
            )
        spec = read_architecture(checkpoint)
        check_tensors(checkpoint, spec)
        return cls(checkpoint, spec)

    @property
    def grid(self) -> PatchGrid:
        """Where an image's features lie."""
        vision = self.spec.vision
        return PatchGrid.of(
            vision.grid,
            prefix_tokens=vision.prefix_tokens,
            skipped_patches=vision.skipped_patches,
        )


@dataclass(frozen=True, eq=False)
class Processor:
    """What makes model inputs of texts and images.

    Attributes:
        tokenizer: Of Transformers.
        template: The chat template, None if the checkpoint has none.
        image_processor: Of Transformers, working on Pillow images.
        end_ids: Ids that end an answer.
    """

    tokenizer: Any
    template: str | None
    image_processor: Any
    end_ids: tuple[int, ...]


def load_llava(path: Path, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """All weights, in evaluation mode, with attention that takes a mask of numbers."""
    with quiet_transformers():
        model = LlavaForConditionalGeneration.from_pretrained(
            path, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True
        )
    return model.eval()


def load_processor(path: Path, model: LlavaForConditionalGeneration) -> Processor:
    """Tokenizer, template and image processor.

    Raises:
        InputError: One of them is missing or damaged.
    """
    try:
        with quiet_transformers():
            processor = AutoProcessor.from_pretrained(path, local_files_only=True)
            images = AutoImageProcessor.from_pretrained(path, backend="pil", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} has no usable processor ({' '.join(str(error).split())[:300]})",
            why="texts and images become model inputs by its tokenizer and image processor.",
            fix="copy tokenizer, processor_config.json and preprocessor_config.json into it.",
        ) from error
    tokenizer = processor.tokenizer
    template = processor.chat_template or tokenizer.chat_template
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return Processor(tokenizer, template, images, tuple(ids))


def has_modules(path: Path, config: PruningConfig, stored: PruningConfig | None) -> bool:
    """Whether a checkpoint has modules that can be gone on with; see `load_modules`."""
    fits = stored is not None and stored.layers == config.layers
    return fits and (path / MODULES).is_file()


def load_modules(path: Path, config: PruningConfig, stored: PruningConfig | None) -> AtpModules:
    """The checkpoint's modules where they fit, else freshly initialised ones.

    Args:
        path: The checkpoint.
        config: Of the training.
        stored: The checkpoint's own, whose modules can be used if it prunes at the same layers.
    """
    if has_modules(path, config, stored):
        return AtpModules.load(path / MODULES, config)
    return AtpModules(config).initialise()
