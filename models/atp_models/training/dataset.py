"""Records as what `DataLoader` gives the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from atp_models.training.packing import pack
from atp_models.training.pictures import Pictures
from atp_models.training.prompts import ConversationWriter, answer_numbers
from atp_models.training.records import Record
from atp_models.training.rows import TokenRow, collate


class Sample(TypedDict):
    """A row and its images.

    Attributes:
        number: Of the sample in its dataset.
        row: Its tokens.
        images: [images, ...], None without images.
    """

    number: int
    row: TokenRow
    images: Tensor | None


class ConversationDataset(Dataset[Sample]):
    """Rows of one record each, or of several about the same images.

    Args:
        records: What is learnt or answered.
        writer: Makes rows of them.
        pictures: Reads their images.
        pack_up_to: Records per row; 1 packs nothing.
    """

    def __init__(
        self,
        records: Sequence[Record],
        writer: ConversationWriter,
        pictures: Pictures,
        *,
        pack_up_to: int = 1,
    ) -> None:
        self.groups = group_records(records, pack_up_to)
        self._writer = writer
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Sample:
        """A row, read and tokenised when it is asked for.

        Raises:
            InputError: An image cannot be read, or a conversation cannot be tokenised.
        """
        group = self.groups[number]
        row = pack([self._writer.row(record) for record in group])
        files = group[0].images
        images = self._pictures.stack(files) if files else None
        return {"number": number, "row": row, "images": images}


class Collator:
    """Joins samples into the tensors of a `TokenBatch`, and `answers` and `numbers` beside them.

    Args:
        image_features: Features per image.
        images_as: "pixel_values" or "tower_features".
    """

    def __init__(self, image_features: int, images_as: str) -> None:
        self._image_features = image_features
        self._images_as = images_as

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """The tensors; `answers` is int64 [batch, tokens], `numbers` int64 [batch]."""
        rows = [sample["row"] for sample in samples]
        batch = collate(rows, self._image_features)
        answers = [answer_numbers(row) for row in rows]
        batch["answers"] = torch.nn.utils.rnn.pad_sequence(answers, True, -1)
        batch["numbers"] = torch.tensor([sample["number"] for sample in samples])
        images = [sample["images"] for sample in samples if sample["images"] is not None]
        if images:
            batch[self._images_as] = torch.cat(images)
        return batch


def group_records(records: Sequence[Record], size: int) -> list[tuple[Record, ...]]:
    """Groups of at most `size` records with the same images and system prompt, in order.

    Records without images stay alone: they have nothing to share.
    """
    groups: list[list[Record]] = []
    open_groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        key = (record.images, record.system)
        group = open_groups.get(key) if record.images else None
        if group is None or len(group) == size:
            group = open_groups[key] = []
            groups.append(group)
        group.append(record)
    return [tuple(group) for group in groups]
