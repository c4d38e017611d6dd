"""ScienceQA's questions with an image (arXiv 2209.09513): problems.json, pid_splits.json, images.

An image is images/<split>/<problem>/image.png beside the two files, or anywhere with --images.
"""

from __future__ import annotations

from pathlib import Path

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
from atp_runtime.evaluation.image_files import ImageFolders
from atp_runtime.evaluation.keys.multiple_choice import MultipleChoice
from atp_runtime.evaluation.question import Question

_PROBLEMS, _SPLITS = "problems.json", "pid_splits.json"


def _recognises(document: Document) -> bool:
    if document.path.is_dir():
        return (document.path / _PROBLEMS).is_file()
    return has_fields(first(document.value), ["choices", "hint", "image"])


def _read(document: Document, options: ReadOptions) -> Dataset:
    if document.path.is_dir():
        document = Document.read(document.path / _PROBLEMS)
    splits = Document.read(document.path.with_name(_SPLITS))
    split = options.split or "test"
    numbers = _numbers(splits, split)
    folders = ImageFolders.of(options.images, document.path, [split, f"images/{split}", "images"])
    questions = [
        _question(number, _problem(document, number), folders)
        for number in numbers
        if _problem(document, number).optional_text("image")
    ]
    return Dataset(tuple(questions), (document.path, splits.path))


def _numbers(splits: Document, split: str) -> list[str]:
    known = splits.value if isinstance(splits.value, dict) else {}
    if isinstance(known.get(split), list):
        return [str(number) for number in known[split]]
    raise InputError(
        f"{splits.path}: no split {split!r}",
        why=f"it has {', '.join(map(str, known)) or 'none'}.",
        fix="name one of them with --split.",
    )


def _problem(document: Document, number: str) -> Record:
    fields = document.value.get(number) if isinstance(document.value, dict) else None
    if isinstance(fields, dict):
        return Record(f"{document.path}, problem {number}", fields)
    raise InputError(
        f"{document.path}: no problem {number}",
        why=f"{_SPLITS} names it.",
        fix="download both files again.",
    )


def _question(number: str, problem: Record, folders: ImageFolders) -> Question:
    choices, hint = problem.texts("choices"), problem.optional_text("hint")
    context = f"Context: {hint}\n" if hint else ""
    letter = check_letter(chr(ord("A") + problem.whole("answer")), choices, problem.name)
    file = Path(number, problem.text("image"))
    return Question(
        id=number,
        prompt=context + with_options(problem.text("question"), choices),
        images=(folders.find(str(file)),),
        key=MultipleChoice(choices, letter),
        kind=problem.optional_text("subject") or "",
    )


FORMAT = Format(
    name="scienceqa",
    title="ScienceQA, questions with an image",
    metric="multiple choice",
    suffix=LETTER,
    recognises=_recognises,
    read=_read,
    takes=frozenset({"split"}),
)
