"""Which patches a question is about: what the scores of pruning points are taught to favour."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from atp_models.demo.curriculum.patch_words import BACKGROUND, PatchLabels
from atp_models.demo.scenes.vocabulary import NAMES, plural
from atp_models.training.records import Record

_NOUNS = {form: number for number, name in enumerate(NAMES) for form in (name, plural(name))}
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, eq=False)
class Look:
    """What matters in one scene, for some questions about it.

    Attributes:
        pictures: bool [patches], which show one.
        asked: bool [questions, patches], which show what the question or its answer names; all
            False where it names nothing that is there.
        certain: bool [patches], False at the rims of pictures.
    """

    pictures: Tensor
    asked: Tensor
    certain: Tensor

    @classmethod
    def of(cls, labels: PatchLabels, records: Iterable[Record]) -> Look:
        """What the records' conversations are about."""
        asked = [torch.isin(labels.noun, _nouns(record)) for record in records]
        return cls(labels.noun != BACKGROUND, torch.stack(asked), labels.certain)


def _nouns(record: Record) -> Tensor:
    words = {word for turn in record.turns for word in _WORD.findall(turn.text)}
    return torch.tensor(sorted({_NOUNS[word] for word in words & _NOUNS.keys()}), dtype=torch.long)
