"""What a run leaves: scores and a checkpoint directory."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atp_models.atp import FILE_NAME as MODULES
from atp_models.atp import AtpModules
from atp_models.json_files import write_json
from atp_models.pruning_config import PruningConfig, write_pruning_config
from atp_models.training.checkpoint_writer import REPORT, copy_checkpoint, staged
from atp_models.training.dataset import ConversationDataset
from atp_models.training.progress import Progress
from atp_models.training.trained_parts import TrainedParts
from atp_models.training.trainer import AtpTrainer
from atp_runtime.schema import to_json

ADAPTER = "adapter"


def validation_scores(
    trainer: AtpTrainer,
    validation: ConversationDataset | None,
    config: PruningConfig | None,
    progress: Progress,
) -> dict[str, Any]:
    """Scores of the validation, as JSON: "dense" without pruning and "pruned" with it."""
    if validation is None:
        return {}
    dense = trainer.scores(validation, prune=False)
    progress.note(f"validation without pruning: answers {dense.answer_accuracy:.1%}")
    if config is None:
        return {"dense": to_json(dense)}
    pruned = trainer.scores(validation)
    progress.note(
        f"validation with pruning: answers {pruned.answer_accuracy:.1%}, "
        f"{pruned.mean_tokens:.0f} visual tokens on average"
    )
    return {"dense": to_json(dense), "pruned": to_json(pruned)}


def write_outcome(
    source: Path, out: Path, trainer: AtpTrainer, parts: TrainedParts, report: Mapping[str, Any]
) -> None:
    """Writes the directory of a finished run; other processes than the first wait.

    Args:
        source: The checkpoint that was trained.
        out: What to make.
        trainer: Has the weights.
        parts: Which of them are new.
        report: Written along.

    Raises:
        InputError: `out` exists.
        MachineError: The disk is full or not writable.
    """
    whole = trainer.whole_state()
    if trainer.args.should_save:
        with staged(out) as directory:
            copy_checkpoint(source, directory, parts.checkpoint_tensors(whole))
            parts.save_adapter(directory / ADAPTER, whole)
            atp = {n.removeprefix("atp."): v for n, v in whole.items() if n.startswith("atp.")}
            config = trainer.pruning
            if config is not None:
                write_pruning_config(config, directory)
                modules = AtpModules(config)
                modules.load_state_dict(atp)
                modules.save(directory / MODULES)
            write_json(directory / REPORT, report)
    trainer.accelerator.wait_for_everyone()


def versions() -> dict[str, str]:
    """Of what the weights depend on."""
    packages = ("atp-llava", "torch", "transformers", "accelerate", "peft")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": sys.version.split()[0], **found}
