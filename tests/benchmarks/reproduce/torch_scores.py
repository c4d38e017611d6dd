"""The PyTorch model's answers to a data set, pruned as at inference."""

from __future__ import annotations

import tempfile
from pathlib import Path

from atp_models.pruning_config import read_pruning_config
from atp_models.training.arguments import training_arguments
from atp_models.training.evaluation import Scores
from atp_models.training.loading import Source
from atp_models.training.options import DataOptions, TrainingOptions
from atp_models.training.progress import make_progress
from atp_models.training.setup import Splits, build_datasets, load_network, read_splits
from atp_models.training.trained_parts import TrainedParts
from atp_models.training.trainer import AtpTrainer


def torch_scores(checkpoint: Path, data: Path, *, prune: bool) -> Scores:
    """Scores of a checkpoint on all records of a data set.

    Args:
        checkpoint: Trained.
        data: LLaVA conversations.
        prune: Whether its pruning points prune.
    """
    options = TrainingOptions(batch_size=1)
    reading = DataOptions(data, validation=0)
    config = read_pruning_config(checkpoint)
    network = load_network(Source.open(checkpoint), config, options)
    everything = read_splits(reading, seed=0).train
    with tempfile.TemporaryDirectory() as state:
        arguments = training_arguments(options, Path(state), evaluates=True)
        splits = Splits(everything[:1], everything, ())
        datasets = build_datasets(splits, network, reading, arguments, make_progress(quiet=False))
        trainer = AtpTrainer(
            network.decoder,
            TrainedParts(network.decoder, options),
            arguments,
            train=None,
            validation=datasets.validation,
            collator=datasets.collator,
        )
        assert datasets.validation is not None
        return trainer.scores(datasets.validation, prune=prune)
