"""`atp-train`: put ATP modules on a LLaVA checkpoint and train them.

Heavy packages are imported when the work begins, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from atp_models.training.cli_options import NAME, train_parser
from atp_models.training.options import DataOptions, PruningOptions, TrainingOptions
from atp_runtime.cli.command import print_json, run_command, wants_json
from atp_runtime.errors import MachineError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `atp-train`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options = train_parser().parse_args(words)
        return _run(options, command=shlex.join([NAME, *words]))

    return run_command(NAME, work, as_json=wants_json(words))


def _run(options: argparse.Namespace, *, command: str) -> int:
    try:
        job_module: Any = importlib.import_module("atp_models.training.job")
        arguments_module: Any = importlib.import_module("atp_models.training.arguments")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("atp_"):
            raise
        raise MachineError(
            f"the Python package {error.name} is not installed",
            why="training needs it.",
            fix="python -m pip install 'atp-llava[train]'.",
        ) from error
    progress_module: Any = importlib.import_module("atp_models.training.progress")
    # Of several processes, the first speaks.
    first = os.environ.get("RANK", "0") == "0"
    progress = progress_module.make_progress(quiet=options.quiet or options.json or not first)
    passed = options.training_arguments
    job = job_module.TrainingJob(
        checkpoint=options.checkpoint,
        out=options.out,
        data=_data(options),
        pruning=_pruning(options),
        options=_training(options, arguments_module.read_arguments(passed) if passed else {}),
        command=command,
    )
    result = job_module.run_job(job, progress)
    if not first:
        return 0
    if options.json:
        print_json({"unchanged": result.unchanged, **result.report})
    elif result.unchanged:
        print(f"{options.out}: already there, trained with the same data and options")
    else:
        seconds = result.report["seconds"]
        print(f"{options.out}: written in {seconds:.0f} s; see training_report.json")
    return 0


def _data(options: argparse.Namespace) -> DataOptions:
    return DataOptions(
        file=options.data,
        images=options.images,
        validation=options.validation,
        validation_limit=options.validation_limit,
        validation_file=options.validation_data,
        max_length=options.max_length,
        pack=options.pack,
        visual_tokens_stride=options.visual_tokens_stride,
        cache_features=options.cache_features,
    )


def _pruning(options: argparse.Namespace) -> PruningOptions:
    return PruningOptions(
        layers=options.prune_at,
        target_tokens=options.target_tokens,
        min_keep=options.min_keep,
        lambda_target=options.lambda_target,
        lambda_atp=options.lambda_atp,
        temperature_start=options.temperature_start,
        temperature_end=options.temperature_end,
        redundancy=options.redundancy,
        strides=() if options.no_spatial else None,
    )


def _training(options: argparse.Namespace, arguments: dict[str, Any]) -> TrainingOptions:
    return TrainingOptions(
        mode=options.mode,
        dense=options.dense,
        freeze_modules=options.freeze_modules,
        unpruned=options.unpruned,
        fit_thresholds=options.fit_thresholds,
        samples=options.samples,
        keep=options.keep,
        learning_rate=options.learning_rate,
        modules_learning_rate=options.modules_learning_rate,
        lora_rank=options.lora_rank,
        epochs=options.epochs,
        max_steps=options.max_steps,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        drop_below=options.drop_below,
        dtype=options.dtype,
        seed=options.seed,
        arguments=arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
