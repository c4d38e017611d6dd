"""The steps that join the parts into a Hugging Face LLaVA checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from transformers import LlavaConfig

from atp_models.atp import FILE_NAME as MODULES
from atp_models.atp import AtpModules
from atp_models.demo.deltas import Deltas, merge_lora, read_deltas, refused
from atp_models.demo.dinov2 import VisionTower, read_vision_tower
from atp_models.demo.disk import require_space
from atp_models.demo.projector import untrained_projector
from atp_models.demo.recipe import WEIGHTS, Recipe, Training
from atp_models.demo.smollm2 import LanguageModel, read_language_model
from atp_models.demo.tokenizer import IMAGE_TOKEN, read_tokenizer, write_tokenizer
from atp_models.pruning_config import (
    PruningConfig,
    check_layers,
    default_layers,
    write_pruning_config,
)
from atp_runtime.errors import AtpError

IMAGE_SIZE = 336
# As in LLaVA-1.5. It suits DINOv2 as well: the last layer gives one channel a size of 10 to
# 25 times the others', the layer before it does not.
_FEATURE_LAYER = -2
_SELECT_STRATEGY = "default"  # patches without CLS
# RMS of that layer's patch features over eight photos: 0.43 to 0.58.
_FEATURE_RMS = 0.48
_VOCABULARY_MULTIPLE = 64  # a table of whole tiles multiplies faster
# The values of the dequantised 4-bit weights need it: rounded to float16, half the file, they
# moved logits of about 40 by up to 0.06 and changed the greedy answer to 1 of 24 questions
# (one token, where the two best logits were 0.0023 apart).
_DTYPE = torch.float32


def read_trained(recipe: Recipe) -> tuple[Deltas, Training] | None:
    """What was trained for a recipe; None as long as its file is not there.

    Raises:
        CheckFailedError: The file is damaged, or was trained for another recipe.
    """
    if not recipe.deltas.is_file():
        return None
    deltas, training = read_deltas(recipe.deltas)
    if training.recipe != recipe.version:
        problem = f"it was trained for recipe {training.recipe}, not {recipe.version}"
        raise refused(str(recipe.deltas), problem)
    return deltas, training


def write_checkpoint(
    directory: Path,
    *,
    gguf_file: Path,
    onnx_file: Path,
    deltas: Deltas | None,
    report: Callable[[str], None],
) -> None:
    """Write every file of the checkpoint but its card.

    Args:
        directory: Of the checkpoint, empty.
        gguf_file: The decoder and its tokenizer.
        onnx_file: The vision tower.
        deltas: What was trained; None leaves projector and pruning modules initialised.
        report: Called with a line of text at every step.

    Raises:
        CheckFailedError: A part is not what the steps were written for, or the deltas do not
            fit the parts.
        MachineError: The disk has too little space.
    """
    report("reading the tokenizer and dequantising the language model")
    language, image_token = _read_language(gguf_file, directory)

    report("reading the vision tower")
    vision = read_vision_tower(onnx_file, image_size=IMAGE_SIZE)
    _write_processor(vision, directory)

    initial = _initialised(language, vision)
    if deltas is None:
        report("initialising the projector and the pruning modules (untrained)")
        deltas = initial
    else:
        report("merging what was trained: projector, language model, pruning modules")
        _check_fit(deltas, initial, language.config.num_hidden_layers)

    report("writing the weights")
    _write_configs(language, vision, image_token, directory)
    _write_weights(
        {
            "language_model": merge_lora(language.state, deltas),
            "vision_tower": vision.state,
            "multi_modal_projector": dict(deltas.projector),
        },
        directory,
    )
    write_pruning_config(deltas.modules.config, directory)
    deltas.modules.save(directory / MODULES)


def _initialised(language: LanguageModel, vision: VisionTower) -> Deltas:
    """What stands in for the trained while there is none."""
    projector = untrained_projector(
        vision_width=vision.config.hidden_size,
        text_width=language.config.hidden_size,
        input_rms=_FEATURE_RMS,
        output_rms=_embedding_rms(language),
    )
    config = PruningConfig(layers=default_layers(language.config.num_hidden_layers))
    modules = AtpModules(config).initialise()
    return Deltas(projector, lora={}, lora_scale=1.0, modules=modules)


def _check_fit(deltas: Deltas, initial: Deltas, depth: int) -> None:
    """Refuse a projector of other widths, and pruning points beyond the decoder."""
    for name, expected in initial.projector.items():
        found = deltas.projector[name]
        if found.shape != expected.shape:
            raise refused(
                "the trained projector",
                f"its {name} is {list(found.shape)}, not {list(expected.shape)}",
            )
    try:
        check_layers(deltas.modules.config.layers, depth)
    except AtpError as error:
        raise refused("the trained pruning modules", error.what) from error


def _read_language(gguf_file: Path, directory: Path) -> tuple[LanguageModel, int]:
    """Write the tokenizer and read the decoder; also gives the id of `<image>`."""
    reader = gguf.GGUFReader(gguf_file)
    tokenizer = read_tokenizer(reader)
    write_tokenizer(tokenizer, reader, directory)
    tiles = math.ceil(tokenizer.get_vocab_size() / _VOCABULARY_MULTIPLE)
    language = read_language_model(reader, vocabulary=tiles * _VOCABULARY_MULTIPLE)
    return language, tokenizer.get_vocab()[IMAGE_TOKEN]


def _embedding_rms(language: LanguageModel) -> float:
    """RMS of the token embeddings, rounded so that no machine's summing order shows."""
    table = language.state["model.embed_tokens.weight"]
    return round(float(table.double().square().mean().sqrt()), 4)


def _write_configs(
    language: LanguageModel, vision: VisionTower, image_token: int, directory: Path
) -> None:
    config = LlavaConfig(
        text_config=language.config,
        vision_config=vision.config,
        image_token_index=image_token,
        image_seq_length=(IMAGE_SIZE // vision.config.patch_size) ** 2,
        vision_feature_layer=_FEATURE_LAYER,
        vision_feature_select_strategy=_SELECT_STRATEGY,
        architectures=["LlavaForConditionalGeneration"],
        dtype=_DTYPE,
    )
    (directory / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json({t: getattr(language.config, t) for t in tokens}, directory, "generation_config")


def _write_processor(vision: VisionTower, directory: Path) -> None:
    """Write how an image becomes pixels, and how many placeholders stand for it."""
    image = {
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        # DINOv2 was trained on ImageNet's statistics.
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "BitImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": IMAGE_SIZE},
    }
    processor = {
        "image_token": IMAGE_TOKEN,
        "num_additional_image_tokens": 1,
        "patch_size": vision.config.patch_size,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": _SELECT_STRATEGY,
    }
    _write_json(image, directory, "preprocessor_config")
    _write_json(processor, directory, "processor_config")


def _write_weights(modules: dict[str, dict[str, torch.Tensor]], directory: Path) -> None:
    tensors = {
        f"{module}.{name}": value
        for module, state in modules.items()
        for name, value in state.items()
    }
    require_space(directory.parent, sum(tensor.nbytes for tensor in tensors.values()))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    # save_file leaves its file readable to its owner alone.
    (directory / WEIGHTS).chmod((directory / "config.json").stat().st_mode)


def _write_json(content: dict[str, Any], directory: Path, name: str) -> None:
    text = json.dumps(content, indent=2) + "\n"
    (directory / f"{name}.json").write_text(text, encoding="utf-8")
