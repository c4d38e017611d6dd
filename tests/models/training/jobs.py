"""Training jobs on tiny checkpoints, and the tensors that they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from atp_models.atp import AtpModules
from atp_models.checkpoint import Checkpoint
from atp_models.pruning_config import read_pruning_config
from atp_models.training.job import TrainingJob
from atp_models.training.options import DataOptions, PruningOptions, TrainingOptions

TARGET = 18


def job_of(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    rows: dict[str, Any] | None = None,
    pruning: dict[str, Any] | None = None,
    **options: Any,
) -> TrainingJob:
    chosen = {"max_steps": 4, "batch_size": 4, **options}
    return TrainingJob(
        checkpoint,
        out,
        DataOptions(data, **{"validation": 0.2, **(rows or {})}),
        PruningOptions(**{"target_tokens": TARGET, **(pruning or {})}),
        TrainingOptions(**chosen),
    )


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(directory)
    found = {name: checkpoint.read(name) for name in checkpoint.tensors}
    config = read_pruning_config(directory)
    if config is not None:
        found |= AtpModules.load(directory / "atp_modules.safetensors", config).state_dict()
    return found
