"""Records as samples and batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.training.conftest import (
    FEATURES,
    IMAGE,
    MakeCheckpoint,
    load,
    record,
    write_conversations,
)
from transformers import AutoImageProcessor

from atp_models.training.dataset import Collator, ConversationDataset, group_records
from atp_models.training.loading import load_processor
from atp_models.training.pictures import PixelValues
from atp_models.training.prompts import ConversationWriter
from atp_models.training.records import Record, Turn, read_records
from atp_models.training.rows import TokenBatch, batch_from
from atp_runtime.errors import InputError


def dataset_of(checkpoint: Path, records: list[Record], pack: int = 1) -> ConversationDataset:
    processor = load_processor(checkpoint, load(checkpoint))
    writer = ConversationWriter(
        processor.tokenizer,
        processor.template,
        image_token_id=IMAGE,
        image_features=FEATURES,
        end_ids=processor.end_ids,
        max_length=200,
    )
    return ConversationDataset(
        records, writer, PixelValues(processor.image_processor), pack_up_to=pack
    )


def text_only() -> Record:
    return Record("text", (), (Turn("user", "Hi?"), Turn("assistant", "Hello.")), "text")


def test_batches_hold_rows_images_and_numbers(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    records = [*read_records(write_conversations(tmp_path, pictures=2)), text_only()]
    dataset = dataset_of(make_checkpoint(), records)

    batch = Collator(FEATURES, "pixel_values")([dataset[4], dataset[3], dataset[0]])

    tokens = batch_from(batch)
    assert isinstance(tokens, TokenBatch)
    assert tokens.images.tolist() == [0, 1, 1]
    assert batch["numbers"].tolist() == [4, 3, 0]
    assert (tokens.targets >= 0).equal(batch["answers"] >= 0)
    assert tokens.features.max() == 2 * FEATURES - 1
    assert tokens.pixel_values is not None
    processor = AutoImageProcessor.from_pretrained(make_checkpoint(), backend="pil")
    for place, file in enumerate((records[3].images[0], records[0].images[0])):
        expected = processor(images=file.as_posix(), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(tokens.pixel_values[place], expected)


def test_a_batch_without_images_has_none(make_checkpoint: MakeCheckpoint) -> None:
    dataset = dataset_of(make_checkpoint(), [text_only()])
    batch = batch_from(Collator(FEATURES, "pixel_values")([dataset[0]]))
    assert (batch.pixel_values, batch.tower_features) == (None, None)
    assert not batch.asking.any()


def test_packing_joins_the_questions_about_an_image(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    records = read_records(write_conversations(tmp_path, pictures=3))
    dataset = dataset_of(make_checkpoint(), records, pack=8)

    assert len(dataset) == 3
    row = dataset[1]["row"]
    assert row.images == 1
    assert row.blocks.unique().tolist() == [0, 1, 2]


def test_groups_are_of_the_same_images_and_system_prompt_and_never_too_large(
    tmp_path: Path,
) -> None:
    said = (Turn("user", "Q"), Turn("assistant", "A"))
    one, other = (tmp_path / "1.png",), (tmp_path / "2.png",)
    kind = Turn("system", "Be kind.")
    records = [
        Record("0", one, said, "1"),
        Record("1", other, said, "2"),
        Record("2", one, said, "1"),
        Record("3", one, (kind, *said), "1"),
        Record("4", (), said, "4"),
        Record("5", one, said, "1"),
        Record("6", (), said, "6"),
    ]

    names = [[it.name for it in group] for group in group_records(records, 2)]

    assert names == [["0", "2"], ["1"], ["3"], ["4"], ["5"], ["6"]]


def test_an_unreadable_image_is_refused_by_name(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    records = read_records(write_conversations(tmp_path, pictures=1))
    records[0].images[0].write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png cannot be read as an image"):
        dataset_of(make_checkpoint(), records)[0]


def test_a_text_record_is_a_record(tmp_path: Path) -> None:
    assert record("x", "Q", "A")["id"] == "x"
