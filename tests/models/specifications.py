"""Specifications read from configs alone."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlavaConfig

from atp_models.architecture import ModelSpec, read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_configs import tiny_config


def open_config(directory: Path, config: dict[str, Any]) -> Checkpoint:
    """A checkpoint of which only the config matters."""
    (directory / "config.json").write_text(json.dumps(config))
    save_file({"placeholder": torch.zeros(1)}, directory / "model.safetensors")
    return Checkpoint.open(directory)


def read(directory: Path, config: LlavaConfig | dict[str, Any]) -> ModelSpec:
    plain = config if isinstance(config, dict) else config.to_dict()
    return read_architecture(open_config(directory, plain))


def changed(part: str, **fields: Any) -> dict[str, Any]:
    """The tiny config with fields of one part (or of the top, "") changed."""
    config = json.loads(json.dumps(tiny_config().to_dict()))
    (config[part] if part else config).update(fields)
    return config
