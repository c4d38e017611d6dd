"""POPE (arXiv 2305.10355): JSON lines about objects in COCO images, in three files.

The files are coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json (or
those of its other data sets); a directory with some of them is all of them at once. A question's
kind is its field "category", or else the last word of the file's name.
"""

from __future__ import annotations

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document, Record, first, has_fields
from atp_runtime.evaluation.formats.format import SHORT_ANSWER, Dataset, Format, ReadOptions
from atp_runtime.evaluation.image_files import ImageFolders
from atp_runtime.evaluation.keys.yes_no import YesNo
from atp_runtime.evaluation.question import Question

_FILES = "*_pope_*.json"


def _recognises(document: Document) -> bool:
    if document.path.is_dir():
        return any(document.path.glob(_FILES))
    return isinstance(document.value, list) and has_fields(
        first(document.value), ["image", "text", "label"]
    )


def _read(document: Document, options: ReadOptions) -> Dataset:
    files = [document]
    if document.path.is_dir():
        files = [Document.read(path) for path in sorted(document.path.glob(_FILES))]
    folders = ImageFolders.of(options.images, document.path, ["val2014", "images"])
    questions = tuple(
        _question(record, file.path.stem.rpartition("_")[2], folders)
        for file in files
        for record in file.records()
    )
    return Dataset(questions, tuple(file.path for file in files))


def _question(record: Record, kind: str, folders: ImageFolders) -> Question:
    kind = record.optional_text("category") or kind
    label = record.text("label").strip().lower()
    if label not in ("yes", "no"):
        raise InputError(
            f"{record.name}: the label is {label!r}",
            why="it must be yes or no.",
            fix="download the file again.",
        )
    return Question(
        id=f"{kind}/{record.text('question_id')}",  # the three files number alike
        prompt=record.text("text"),
        images=(folders.find(record.text("image")),),
        key=YesNo(label),
        kind=kind,
    )


FORMAT = Format(
    name="pope",
    title="POPE",
    metric="yes/no accuracy",
    suffix=SHORT_ANSWER,
    recognises=_recognises,
    read=_read,
)
