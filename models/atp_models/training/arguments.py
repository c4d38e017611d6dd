"""Transformers' `TrainingArguments` for a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from atp_models.training.options import TrainingOptions
from atp_runtime.errors import InputError

_WORKERS = 4


def training_arguments(
    options: TrainingOptions, state: Path, *, evaluates: bool
) -> TrainingArguments:
    """Our defaults, the options, and what the user passed on.

    Args:
        options: Of the run.
        state: Where checkpoints go.
        evaluates: Whether there is anything to validate with.

    Raises:
        InputError: An argument that Transformers does not know, refuses, or that an option of
            ours sets.
    """
    fixed = {
        "output_dir": str(state),
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": options.seed,
        "num_train_epochs": options.epochs,
        "max_steps": -1 if options.max_steps is None else options.max_steps,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulate,
    }
    taken = sorted(fixed.keys() & options.arguments.keys())
    if taken:
        raise InputError(
            f"training argument {taken[0]!r} is set by atp-train itself",
            why="the two would contradict each other.",
            fix="use the option of atp-train for it; see atp-train --help.",
        )
    defaults = {
        "per_device_eval_batch_size": options.batch_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "logging_steps": 0.01,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": 0.1,
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 1,
        "report_to": [],
        "log_level": "error",
        "dataloader_num_workers": min(_WORKERS, (os.cpu_count() or 1) // 2),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        # Said aloud, or Transformers refuses bf16 there.
        "use_cpu": not torch.accelerator.is_available(),
    }
    try:
        arguments = TrainingArguments(**{**defaults, **options.arguments, **fixed})
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(
            f"Transformers refuses the training arguments ({' '.join(str(error).split())[:300]})",
            why="they are passed on to its TrainingArguments.",
            fix="correct the file given with --training-arguments.",
        ) from error
    # One process would spread a batch over all GPUs in threads; processes do it better.
    arguments._n_gpu = min(1, arguments.n_gpu)  # noqa: SLF001 - there is no other way to say so
    return arguments


def read_arguments(file: Path) -> Mapping[str, Any]:
    """Training arguments from a JSON or YAML file.

    Raises:
        InputError: It cannot be read, or holds no names with values.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{file} cannot be read ({' '.join(str(error).split())})",
            why="arguments for the trainer were to come from there.",
            fix="give a JSON or YAML file of names and values.",
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{file} holds no names with values",
            why="arguments for the trainer were to come from there.",
            fix="write them as in `weight_decay: 0.1`, a line each.",
        )
    return content
