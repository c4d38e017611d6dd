"""MMBench (arXiv 2307.06281): a table with images in base64 and each question in several orders.

Row 1000003 is row 3 with its options rotated once, 2000003 twice, and so on; a question counts as
right if it is in every order ("circular evaluation"). Instead of an image, a row may have the
index of the row that has it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document, Record, first, has_fields
from atp_runtime.evaluation.formats.format import (
    LETTER,
    Dataset,
    Format,
    ReadOptions,
    check_letter,
    with_options,
)
from atp_runtime.evaluation.keys.multiple_choice import MultipleChoice
from atp_runtime.evaluation.question import EmbeddedImage, Question

_ROTATION = 1_000_000
_LETTERS = "ABCDEFGH"
_LONGEST_INDEX = 64  # characters; no image is that short in base64
_NOTHING = ("", "nan", "none")
_LEFT_OUT = ("image", "hint", "category", "l2-category", "source", "comment", "split", "answer")


def _recognises(document: Document) -> bool:
    value = document.value
    return isinstance(value, list) and has_fields(
        first(value), ["index", "question", "A", "B", "image"]
    )


def _read(document: Document, options: ReadOptions) -> Dataset:
    records = document.records()
    images = {record.text("index"): record.text("image") for record in records}
    questions = []
    for record in records:
        rotation, base = divmod(_index(record), _ROTATION)
        if options.circular or rotation == 0:
            group = str(base) if options.circular else ""
            questions.append(_question(record, group, images, document.path.name))
    return Dataset(tuple(questions), (document.path,))


def _index(record: Record) -> int:
    text = record.text("index")
    if not text.isdigit():
        raise record.wrong("index", "a whole number")
    return int(text)


def _question(record: Record, group: str, images: Mapping[str, str], file: str) -> Question:
    question, answer = record.text("question"), _filled(record, "answer")
    hint = _filled(record, "hint")
    options = _options(record)
    return Question(
        id=record.text("index"),
        prompt=with_options(f"{hint}\n{question}" if hint else question, options),
        images=(_image(record, images, file),),
        key=MultipleChoice(options, check_letter(answer, options, record.name) if answer else None),
        kind=_filled(record, "l2-category") or _filled(record, "category") or "",
        group=group,
    )


def _filled(record: Record, field: str) -> str | None:
    text = record.optional_text(field)
    return None if text is None or text.strip().lower() in _NOTHING else text


def _options(record: Record) -> tuple[str, ...]:
    options: list[str] = []
    for letter in _LETTERS:
        option = _filled(record, letter)
        if option is None:
            break
        options.append(option)
    if len(options) < 2:
        raise record.wrong("B", "an option")
    return tuple(options)


def _image(record: Record, images: Mapping[str, str], file: str) -> EmbeddedImage:
    index = record.text("index")
    encoded = images[index]
    if len(encoded) <= _LONGEST_INDEX:
        index, encoded = encoded, images.get(encoded, "")
    if len(encoded) <= _LONGEST_INDEX:
        raise InputError(
            f"{record.name}: no image",
            why=f"it refers to row {index}, which has none.",
            fix="download the file again.",
        )
    # Rows of one question repeat the image; the base row's name lets it be seen once.
    return EmbeddedImage(f"{file}:{int(index) % _ROTATION}", encoded)


def _submit(document: Document, read: Mapping[str, str]) -> str:
    """The table without images, for a spreadsheet: the server takes it as .xlsx."""
    records = [record for record in document.records() if record.text("index") in read]
    names = [name for name in records[0].fields if name not in _LEFT_OUT]
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow([*names, "prediction"])
    for record in records:
        row = [record.fields[name] for name in names]
        table.writerow([*row, read[record.text("index")]])
    return text.getvalue()


FORMAT = Format(
    name="mmbench",
    title="MMBench",
    metric="multiple choice",
    suffix=LETTER,
    recognises=_recognises,
    read=_read,
    takes=frozenset({"circular"}),
    submission=("submission.tsv", _submit),
)
