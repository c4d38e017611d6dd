"""Checkpoints whose layers have VideoLLM-MoD's routers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def named(layer: int) -> str:
    """A layer's router, as checkpoints on the model hub would name it."""
    return f"language_model.model.layers.{layer}.router.weight"


def drawn(layer: int, hidden: int) -> torch.Tensor:
    """A router whose scores are of the order of one."""
    return torch.randn(1, hidden, generator=torch.Generator().manual_seed(layer)) / hidden**0.5


def with_tensors(source: Path, directory: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """A copy of a checkpoint with further tensors."""
    shutil.copytree(source, directory)
    save_file({**load_file(source / WEIGHTS), **tensors}, directory / WEIGHTS)
    return directory


def with_routers(source: Path, directory: Path, layers: Sequence[int]) -> Path:
    """A copy of a checkpoint with routers in some layers."""
    hidden = load_file(source / WEIGHTS)["language_model.model.norm.weight"].shape[0]
    return with_tensors(source, directory, {named(it): drawn(it, hidden) for it in layers})
