"""What is trained is what the device runs: a trained checkpoint, exported, against training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import write_bundle
from tests.models.training.conftest import (
    FEATURES,
    IMAGE,
    MakeCheckpoint,
    Notes,
    write_conversations,
)

from atp_models.pruning_config import read_pruning_config
from atp_models.training.dataset import Collator, ConversationDataset
from atp_models.training.job import TrainingJob, run_job
from atp_models.training.loading import Source
from atp_models.training.options import DataOptions, PruningOptions, TrainingOptions
from atp_models.training.pictures import PixelValues
from atp_models.training.prompts import ConversationWriter
from atp_models.training.records import read_records
from atp_models.training.rows import batch_from
from atp_models.training.setup import load_network
from atp_runtime import Session


def trained(checkpoint: Path, data: Path, out: Path) -> Path:
    run_job(
        TrainingJob(
            checkpoint,
            out,
            DataOptions(data, validation=0.0),
            PruningOptions(target_tokens=18),
            TrainingOptions(mode="lora", max_steps=2, learning_rate=1e-2),
        ),
        Notes(),
    )
    return out


def dataset_of(checkpoint: Path, data: Path) -> tuple[ConversationDataset, object]:
    config = read_pruning_config(checkpoint)
    network = load_network(Source.open(checkpoint), config, TrainingOptions())
    processor = network.processor
    writer = ConversationWriter(
        processor.tokenizer,
        processor.template,
        image_token_id=IMAGE,
        image_features=FEATURES,
        end_ids=processor.end_ids,
        max_length=500,
    )
    pictures = PixelValues(processor.image_processor)
    return ConversationDataset(read_records(data), writer, pictures), network.decoder.eval()


@pytest.mark.slow
def test_the_device_keeps_and_answers_what_training_evaluates(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    data = write_conversations(tmp_path / "data", pictures=6)
    several = json.loads(data.read_text())
    several.append(
        {
            "image": ["pictures/0.png", "pictures/4.png"],
            "conversations": [
                {"from": "human", "value": "<image>\n<image>\nSame?"},
                {"from": "gpt", "value": "no"},
            ],
        }
    )
    data.write_text(json.dumps(several))
    checkpoint = trained(make_checkpoint(), data, tmp_path / "out")
    dataset, decoder = dataset_of(checkpoint, data)
    bundle = tmp_path / "bundle"
    write_bundle(
        checkpoint, bundle, precision="fp32", dialect="portable", dense=False, prune_at=None
    )

    with Session.open(bundle) as session:
        for number, (record,) in enumerate(dataset.groups):
            batch = batch_from(Collator(FEATURES, "pixel_values")([dataset[number]]))
            with torch.no_grad():
                found = decoder(batch)  # type: ignore[operator]
            answer = session.conversation().ask(record.turns[0].text, images=record.images)

            kept = [int(point.selection.kept.sum()) for point in answer.points]
            assert kept == found.counts[:, 0].int().tolist()
            assert answer.ids[0] == int(found.logits[0].argmax())
