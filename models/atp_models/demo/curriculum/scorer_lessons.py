"""The stage between dense and pruned training: scorers are taught on the scenes of the course."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from atp_models.demo.curriculum.looks import Look
from atp_models.demo.curriculum.methods import Scorers
from atp_models.demo.curriculum.patch_words import PatchLabels
from atp_models.demo.curriculum.scorer_warmup import Lesson, Schedule, warm_up_scorers
from atp_models.demo.curriculum.stages import SEED, SPLIT, Stage, write_stage_data
from atp_models.demo.scenes.layout import make_scene
from atp_models.pruning_config import read_pruning_config
from atp_models.training.arguments import training_arguments
from atp_models.training.checkpoint_writer import copy_checkpoint, staged
from atp_models.training.dataset import Collator, ConversationDataset
from atp_models.training.loading import Source
from atp_models.training.options import DataOptions, TrainingOptions
from atp_models.training.packing import PatchGrid, thin_batch
from atp_models.training.progress import Progress
from atp_models.training.rows import batch_from
from atp_models.training.setup import build_datasets, load_network, read_splits

_STRIDE = 2  # scores change little with the number of tokens, and these cost a quarter
_PACK = 8


def teach_scorers(
    checkpoint: Path,
    stage: Stage,
    work: Path,
    *,
    dtype: str,
    report: Callable[[str], None],
    progress: Progress,
) -> Path:
    """Writes `work / stage.name`, or leaves it if it is there.

    Args:
        checkpoint: Trained densely, with a pruning configuration.
        stage: One whose method is `Scorers`.
        work: Holds the data sets.
        dtype: Of what is not trained, and of products.
        report: Called with a line of text now and then.
        progress: Shows vision features being computed, if any is missing.
    """
    out = work / stage.name
    if out.is_dir():
        return out
    config = read_pruning_config(checkpoint)
    assert config is not None  # noqa: S101 - the demo has one
    assert isinstance(stage.method, Scorers)  # noqa: S101 - see above
    options = TrainingOptions(mode="projector", dense=True, dtype=dtype, seed=SEED)
    network = load_network(Source.open(checkpoint), None, options)
    decoder = network.decoder.eval()
    decoder.requires_grad_(False)
    file = write_stage_data(stage, work)
    data = DataOptions(file, work, validation=0, pack=_PACK, cache_features=work / "features")
    arguments = training_arguments(options, work / "unused", evaluates=False)
    splits = read_splits(data, seed=SEED)
    datasets = build_datasets(splits, network, data, arguments, progress)
    changed = warm_up_scorers(
        decoder,
        # The last point's layer tells pictures from background by itself.
        [layer - 1 for layer in config.layers[:-1]],
        _lessons(datasets.train, datasets.collator, decoder.grid),
        schedule=Schedule(stage.steps, stage.rows, stage.method.cross_weight, SEED),
        half=dtype == "bfloat16",
        report=report,
    )
    with staged(out) as staging:
        copy_checkpoint(checkpoint, staging, changed)
    return out


def _lessons(dataset: ConversationDataset, collator: Collator, grid: PatchGrid) -> Iterator[Lesson]:
    """A few questions about an image each, in random order."""
    generator = torch.Generator().manual_seed(SEED)
    for number in torch.randperm(len(dataset), generator=generator).tolist():
        group = dataset.groups[number]
        if len(group) == 1:
            continue  # a row of one conversation is not packed
        offset = torch.randint(_STRIDE, (1, 2), generator=generator)
        batch = batch_from(collator([dataset[number]]))
        batch = thin_batch(batch, grid, torch.tensor([_STRIDE]), offset)
        scene = make_scene(SPLIT, int(group[0].images[0].stem))
        yield Lesson(batch, Look.of(PatchLabels.of(scene), group))
