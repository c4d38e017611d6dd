"""Checkpoints with QueCC's compressor before their projector."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.routers import with_tensors

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.compressor import PREFIX, compressor_shapes


def drawn(checkpoint: Path, grid: int) -> dict[str, torch.Tensor]:
    """A compressor that fits a checkpoint, as it would be stored."""
    spec = read_architecture(Checkpoint.open(checkpoint))
    made = torch.Generator().manual_seed(grid)
    tensors = {}
    for name, shape in compressor_shapes(spec.vision, spec.text.hidden, grid).items():
        noise = torch.randn(shape, generator=made)
        if name.endswith(".bias"):
            noise = 0.1 * noise
        elif name.endswith(".norm.weight"):
            noise = 1 + 0.1 * noise
        else:
            noise /= torch.Size(shape[1:]).numel() ** 0.5
        tensors[f"quecc.{name.removeprefix(PREFIX)}"] = noise
    return tensors


def with_compressor(source: Path, directory: Path, grid: int) -> Path:
    """A copy of a checkpoint with a compressor to `grid` x `grid` tokens."""
    return with_tensors(source, directory, drawn(source, grid))
