"""SEED-Bench (arXiv 2307.16125): its questions about one image; those about videos are left out."""

from __future__ import annotations

from typing import Any

from atp_runtime.evaluation.data_file import Document, Record, first, has_fields
from atp_runtime.evaluation.formats.format import (
    LETTER,
    Dataset,
    Format,
    ReadOptions,
    check_letter,
    with_options,
)
from atp_runtime.evaluation.image_files import ImageFolders
from atp_runtime.evaluation.keys.multiple_choice import MultipleChoice
from atp_runtime.evaluation.question import Question

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_ONE_IMAGE = ("image", "single image")  # versions 1 and 2


def _recognises(document: Document) -> bool:
    return has_fields(document.value, ["questions"]) and has_fields(
        first(document.value["questions"]), ["choice_a", "data_id", "question_type_id"]
    )


def _read(document: Document, options: ReadOptions) -> Dataset:
    folders = ImageFolders.of(options.images, document.path, ["SEED-Bench-image"])
    kinds = _kinds(document.value.get("question_type"))
    questions = [
        _question(record, kinds, folders)
        for record in document.records(document.value["questions"])
        if record.text("data_type").lower() in _ONE_IMAGE
    ]
    return Dataset(tuple(questions), (document.path,))


def _kinds(types: Any) -> dict[str, str]:
    """Names of the question types by their number."""
    return {str(number): name for name, number in types.items()} if isinstance(types, dict) else {}


def _question(record: Record, kinds: dict[str, str], folders: ImageFolders) -> Question:
    choices = tuple(record.text(field) for field in _CHOICES)
    image, number = record.text("data_id"), record.text("question_type_id")
    return Question(
        id=record.text("question_id"),
        prompt=with_options(record.text("question"), choices),
        images=(folders.find(image, f"{image}.jpg", f"{image}.png"),),
        key=MultipleChoice(choices, check_letter(record.text("answer"), choices, record.name)),
        kind=kinds.get(number, f"type {number}"),
    )


FORMAT = Format(
    name="seed",
    title="SEED-Bench, questions about an image",
    metric="multiple choice",
    suffix=LETTER,
    recognises=_recognises,
    read=_read,
)
