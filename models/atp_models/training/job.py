"""A run from its options to the written checkpoint: `atp-train`'s work."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from atp_models.json_files import read_json
from atp_models.pruning_config import PruningConfig, read_pruning_config
from atp_models.training.arguments import training_arguments
from atp_models.training.checkpoint_writer import REPORT
from atp_models.training.loading import Source, has_modules
from atp_models.training.options import DataOptions, PruningOptions, TrainingOptions
from atp_models.training.outcome import validation_scores, versions, write_outcome
from atp_models.training.progress import Progress
from atp_models.training.pruning_setup import planned_config, training_config
from atp_models.training.reporting import ProgressLines
from atp_models.training.rows import TokenBatch, batch_from
from atp_models.training.run_state import RunState
from atp_models.training.setup import (
    Datasets,
    Network,
    Splits,
    build_datasets,
    load_network,
    read_splits,
)
from atp_models.training.stopping import StopOnInterrupt
from atp_models.training.threshold_fit import fit_thresholds, token_plan
from atp_models.training.trained_parts import TrainedParts
from atp_models.training.trainer import AtpTrainer
from atp_runtime.cli.command import InterruptedWorkError
from atp_runtime.errors import InputError, MachineError
from atp_runtime.schema import to_json

UNLEARNT = (
    "The thresholds were fitted to a token budget. Nothing was learnt from answers, so how well "
    "the model answers with this pruning is what the scores say, and no more."
)


@dataclass(frozen=True)
class TrainingJob:
    """What the user asked for.

    Attributes:
        checkpoint: A Hugging Face LLaVA directory.
        out: The directory to make.
        data: Which conversations.
        pruning: Which pruning.
        options: How to learn.
        command: As it was given, for the report.
    """

    checkpoint: Path
    out: Path
    data: DataOptions
    pruning: PruningOptions = field(default_factory=PruningOptions)
    options: TrainingOptions = field(default_factory=TrainingOptions)
    command: str = ""


@dataclass(frozen=True)
class TrainingResult:
    """What became of a job.

    Attributes:
        report: As it is written.
        unchanged: Whether it was there already.
    """

    report: Mapping[str, Any]
    unchanged: bool


def run_job(job: TrainingJob, progress: Progress) -> TrainingResult:
    """Trains or fits, evaluates and writes; goes on where it was interrupted.

    Raises:
        InputError: Something cannot be used; see the parts.
        InterruptedWorkError: Ctrl-C, after a checkpoint.
        MachineError: Space or memory does not suffice.
    """
    _check(job)
    source = Source.open(job.checkpoint)
    splits = read_splits(job.data, seed=job.options.seed)
    config = None if job.options.dense else _config(job, source)
    state = RunState(job.out, _key(job, source, splits, config))
    if state.is_finished:
        return TrainingResult(read_json(job.out / REPORT), unchanged=True)
    with state.alone():
        report = _train(job, source, splits, config, state, progress)
    return TrainingResult(report, unchanged=False)


def _train(
    job: TrainingJob,
    source: Source,
    splits: Splits,
    config: PruningConfig | None,
    state: RunState,
    progress: Progress,
) -> Mapping[str, Any]:
    """Trains or fits, evaluates and writes; returns the report."""
    began = time.perf_counter()
    set_seed(job.options.seed)
    network = load_network(source, config, job.options)
    evaluates = bool(splits.validation)
    arguments = training_arguments(job.options, state.directory, evaluates=evaluates)
    datasets = build_datasets(splits, network, job.data, arguments, progress)
    parts = TrainedParts(network.decoder, job.options)
    trainer = AtpTrainer(
        network.decoder,
        parts,
        arguments,
        train=datasets.train,
        validation=datasets.validation,
        collator=datasets.collator,
        visual_tokens_stride=job.data.visual_tokens_stride,
        unpruned=job.options.unpruned,
    )
    trainer.add_callback(ProgressLines(progress))
    with _memory_explained():
        if job.options.fit_thresholds:
            outcome = _fit(trainer, network, datasets, job, progress)
        else:
            outcome = _learn(trainer, state, progress)
        scores = validation_scores(trainer, datasets.validation, config, progress)
    report = {
        "schema_version": 1,
        "command": job.command,
        "key": state.key,
        "records": {"train": len(splits.train), "validation": len(splits.validation)},
        "pruning": to_json(config),
        **outcome,
        "scores": scores,
        "history": trainer.state.log_history,
        "seconds": time.perf_counter() - began,
        "versions": versions(),
    }
    write_outcome(job.checkpoint, job.out, trainer, parts, report)
    if arguments.should_save:
        state.remove()
    return report


def _check(job: TrainingJob) -> None:
    options, data = job.options, job.data
    fits, frozen = options.fit_thresholds, options.freeze_modules
    alone = options.mode == "modules"
    contradictions = {
        "--dense trains no module, so --mode must be projector, lora or full": (
            options.dense and alone
        ),
        "--dense has no thresholds to fit": options.dense and fits,
        "--dense has no modules to freeze": options.dense and frozen,
        "--freeze-modules leaves the decoder to learn, so --mode must be lora or full": (
            frozen and options.mode not in ("lora", "full")
        ),
        "--unpruned is for --freeze-modules, so it needs that": (
            options.unpruned > 0 and not frozen
        ),
        "--fit-thresholds changes modules only, so it takes no other --mode": fits and not alone,
        "--fit-thresholds looks at each prompt by itself, so no --pack": fits and data.pack > 1,
        "--fit-thresholds fits them to all visual tokens, so no --visual-tokens-stride": (
            fits and data.visual_tokens_stride != (1,)
        ),
        "--keep plans what --fit-thresholds is to fit, so it needs that": (
            options.keep is not None and not fits
        ),
        "--keep has its own mean, so no --target-tokens": (
            options.keep is not None and job.pruning.target_tokens is not None
        ),
        "--fit-thresholds fits the redundancy criterion, which is turned off": (
            fits and job.pruning.redundancy == "none"
        ),
    }
    problem = next((said for said, holds in contradictions.items() if holds), None)
    if problem:
        raise InputError(
            problem,
            why="these options contradict each other.",
            fix="see docs/training.md for what goes together.",
        )


def _config(job: TrainingJob, source: Source) -> PruningConfig:
    spec, keep, pruning = source.spec, job.options.keep, job.pruning
    depth, tokens = spec.text.layers, spec.vision.tokens
    stored = read_pruning_config(job.checkpoint)
    if keep is None:
        config = training_config(stored, pruning, depth=depth, tokens=tokens)
    else:
        anything = dataclasses.replace(pruning, target_tokens=tokens)
        config = training_config(stored, anything, depth=depth, tokens=tokens)
        config = planned_config(config, keep, depth=depth, tokens=tokens)
    if job.options.freeze_modules and not has_modules(job.checkpoint, config, stored):
        raise InputError(
            f"{job.checkpoint} has no ATP modules before layers {config.layers}",
            why="--freeze-modules trains the decoder behind modules that are there.",
            fix="make them first: by atp-train --fit-thresholds, or without --freeze-modules.",
        )
    return config


def _key(
    job: TrainingJob, source: Source, splits: Splits, config: PruningConfig | None
) -> dict[str, Any]:
    """All that decides on the weights. Where files lie does not, what is in them does."""
    data = job.data
    return {
        "checkpoint": source.checkpoint.fingerprint(),
        "data": list(splits.hashes),
        "rows": {
            "validation": data.validation,
            "validation_limit": data.validation_limit,
            "max_length": data.max_length,
            "pack": data.pack,
            "visual_tokens_stride": list(data.visual_tokens_stride),
            "cached_features": data.cache_features is not None,
        },
        "pruning": to_json(config),
        "options": to_json(job.options),
    }


@contextlib.contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "the accelerator is out of memory",
            why="weights, gradients and activations of a batch must fit.",
            fix="give a smaller --batch-size and more --accumulate, or pass "
            "activation_checkpointing: true with --training-arguments.",
        ) from error


def _learn(trainer: AtpTrainer, state: RunState, progress: Progress) -> dict[str, Any]:
    last = state.last_checkpoint()
    with StopOnInterrupt(progress) as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        raise InterruptedWorkError(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}",
            why="Ctrl-C ended the work.",
            fix="run the same command again; it goes on from there.",
        )
    return {"learnt": True, "steps": trainer.state.global_step}


def _fit(
    trainer: AtpTrainer, network: Network, datasets: Datasets, job: TrainingJob, progress: Progress
) -> dict[str, Any]:
    decoder = network.decoder
    assert decoder.atp is not None  # noqa: S101 - dense jobs do not come here
    decoder.eval()
    batches = _sampled(datasets, job, trainer.args.device)
    plan = job.options.keep or token_plan(
        decoder.atp.config,
        depth=len(decoder.llava.model.language_model.layers),
        tokens=len(decoder.grid),
    )
    kept = fit_thresholds(decoder, batches, plan, progress)
    return {
        "learnt": False,
        "notice": UNLEARNT,
        "fit": {"samples": len(batches), "plan": list(plan), "kept": list(kept)},
    }


def _sampled(datasets: Datasets, job: TrainingJob, device: torch.device) -> list[TokenBatch]:
    """Records with images, evenly spread over the training data."""
    train = datasets.train
    shown = [at for at, group in enumerate(train.groups) if group[0].images]
    if not shown:
        raise InputError(
            f"no record of {job.data.file} has an image",
            why="thresholds are fitted to images.",
            fix="give conversations about images.",
        )
    chosen = shown[:: max(1, len(shown) // job.options.samples)][: job.options.samples]
    return [batch_from(datasets.collator([train[at]])).to(device) for at in chosen]
