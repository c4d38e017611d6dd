"""Several processes train like one with a larger batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.models.training.conftest import MakeCheckpoint, write_conversations

from atp_models.atp import AtpModules
from atp_models.checkpoint import Checkpoint
from atp_models.pruning_config import read_pruning_config

ARGUMENTS = "{use_cpu: true, optim: sgd, lr_scheduler_type: constant, warmup_steps: 0}"


def train(words: list[str], *, processes: int) -> str:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    run = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "atp_models.training", *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return run.stdout


def state(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint, config = Checkpoint.open(directory), read_pruning_config(directory)
    assert config is not None
    modules = AtpModules.load(directory / "atp_modules.safetensors", config)
    return {name: checkpoint.read(name) for name in checkpoint.tensors} | modules.state_dict()


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    data = write_conversations(tmp_path / "data")
    (tmp_path / "arguments.yaml").write_text(ARGUMENTS)

    def words(name: str, batch: int) -> list[str]:
        # Far below reach, so that the sign of the target's gradient is the same everywhere.
        options = ["--target-tokens", "10", "--lambda-target", "5", "--max-steps", "2"]
        options += ["--batch-size", str(batch), "--training-arguments"]
        options += [str(tmp_path / "arguments.yaml"), "--validation", "0.2", "--mode", "projector"]
        options += ["--learning-rate", "0.1", "--modules-learning-rate", "0.1"]
        return [str(make_checkpoint()), str(data), str(tmp_path / name), *options]

    train(words("one", 8), processes=1)
    told = train(words("two", 4), processes=2)

    assert told.count("written in") == 1
    one, two, begun = (
        state(tmp_path / "one"),
        state(tmp_path / "two"),
        Checkpoint.open(make_checkpoint()),
    )
    projector = [name for name in one if "multi_modal_projector" in name]
    assert any(not torch.equal(one[name], begun.read(name)) for name in projector)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
