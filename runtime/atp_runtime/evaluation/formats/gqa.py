"""GQA (Hudson and Manning 2019): an object of questions by id, images of Visual Genome."""

from __future__ import annotations

import json
from collections.abc import Mapping

from atp_runtime.evaluation.data_file import Document, Record, first, has_fields
from atp_runtime.evaluation.formats.format import SHORT_ANSWER, Dataset, Format, ReadOptions
from atp_runtime.evaluation.image_files import ImageFolders
from atp_runtime.evaluation.keys.exact_match import ExactMatch
from atp_runtime.evaluation.question import Question

_FOLDERS = ("images", "../images", "../allImages/images")


def _recognises(document: Document) -> bool:
    value = document.value
    return isinstance(value, dict) and has_fields(first(value), ["imageId", "question"])


def _read(document: Document, options: ReadOptions) -> Dataset:
    folders = ImageFolders.of(options.images, document.path, _FOLDERS)
    names, listed = list(document.value), list(document.value.values())
    questions = [
        Question(
            id=name,
            prompt=record.text("question"),
            images=(folders.find(f"{record.text('imageId')}.jpg"),),
            key=ExactMatch(record.optional_text("answer")),
            kind=_kind(record),
        )
        for name, record in zip(names, document.records(listed), strict=True)
    ]
    return Dataset(tuple(questions), (document.path,))


def _kind(record: Record) -> str:
    """The structural type: query, verify, choose, compare or logical."""
    types = record.fields.get("types")
    return str(types.get("structural") or "") if isinstance(types, dict) else ""


def _submit(_document: Document, read: Mapping[str, str]) -> str:
    return json.dumps([{"questionId": name, "prediction": it} for name, it in read.items()])


FORMAT = Format(
    name="gqa",
    title="GQA",
    metric="exact match",
    suffix=SHORT_ANSWER,
    recognises=_recognises,
    read=_read,
    submission=("submission.json", _submit),
)
