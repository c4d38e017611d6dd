"""LLaVA's conversation JSON, as of the 665k mix and of this project's demo scenes.

A list, or JSON lines, of `{"id", "image", "conversations": [{"from", "value"}, ...]}`; "image" is
a path or a list of paths, or missing. Every human turn is a question of its own, asked without
the turns before it, about all images of its record.
"""

from __future__ import annotations

from typing import Any

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document, Record, first, has_fields
from atp_runtime.evaluation.formats.format import Dataset, Format, ReadOptions
from atp_runtime.evaluation.image_files import ImageFolders
from atp_runtime.evaluation.keys.exact_match import ExactMatch
from atp_runtime.evaluation.question import ImageReference, Question

_PLACEHOLDER = "<image>"
_SPEAKERS = ("human", "gpt")


def _recognises(document: Document) -> bool:
    return isinstance(document.value, list) and has_fields(first(document.value), ["conversations"])


def _read(document: Document, options: ReadOptions) -> Dataset:
    folders = ImageFolders.of(options.images, document.path, ["images"])
    records = document.records()
    questions: list[Question] = []
    for record, name in zip(records, _names(records), strict=True):
        questions += _questions(record, name, folders)
    return Dataset(tuple(questions), (document.path,))


def _names(records: list[Record]) -> list[str]:
    """The records' ids; their numbers where ids are missing or, as in the 665k mix, repeat."""
    ids = [record.optional_text("id") for record in records]
    if None in ids or len(set(ids)) < len(ids):
        return [str(number + 1) for number in range(len(records))]
    return [str(name) for name in ids]


def _questions(record: Record, name: str, folders: ImageFolders) -> list[Question]:
    turns = record.parts("conversations")
    images: tuple[ImageReference, ...] = tuple(map(folders.find, _image_names(record)))
    _check_turns(record, turns, len(images))
    kind = record.optional_text("kind") or ""
    numbers = {field: float(it) for field, it in record.fields.items() if _counts(field, it)}
    asked = range(0, len(turns), 2)
    return [
        Question(
            id=name if len(asked) == 1 else f"{name}/{number // 2 + 1}",
            prompt=turns[number].text("value").replace(_PLACEHOLDER, "").strip(),
            images=images,
            key=ExactMatch(turns[number + 1].text("value") if number + 1 < len(turns) else None),
            kind=kind,
            numbers=numbers,
        )
        for number in asked
    ]


def _image_names(record: Record) -> tuple[str, ...]:
    if isinstance(record.fields.get("image"), list):
        return record.texts("image")
    name = record.optional_text("image")
    return (name,) if name else ()


def _check_turns(record: Record, turns: list[Record], images: int) -> None:
    for number, turn in enumerate(turns):
        if turn.text("from") != _SPEAKERS[number % 2]:
            raise turn.wrong("from", repr(_SPEAKERS[number % 2]))
    places = sum(turn.text("value").count(_PLACEHOLDER) for turn in turns)
    if places not in (0, images):
        raise InputError(
            f"{record.name}: {places} {_PLACEHOLDER} for {images} image(s)",
            why="nothing says which of them are meant.",
            fix="write the placeholder once for each image.",
        )


def _counts(field: str, value: Any) -> bool:
    return field != "id" and isinstance(value, (int, float)) and not isinstance(value, bool)


FORMAT = Format(
    name="llava",
    title="LLaVA conversations",
    metric="exact match",
    suffix="",
    recognises=_recognises,
    read=_read,
)
