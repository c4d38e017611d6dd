"""VQAv2 (visualqa.org): a file of questions, one of annotations, images of COCO 2014 and 2015."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document, first, has_fields
from atp_runtime.evaluation.formats.format import SHORT_ANSWER, Dataset, Format, ReadOptions
from atp_runtime.evaluation.image_files import ImageFolders
from atp_runtime.evaluation.keys.human_answers import HumanAnswers
from atp_runtime.evaluation.question import Question


def _recognises(document: Document) -> bool:
    value = document.value
    return has_fields(value, ["questions", "data_subtype"]) and has_fields(
        first(value["questions"]), ["question_id", "image_id", "question"]
    )


def _read(document: Document, options: ReadOptions) -> Dataset:
    subset = str(document.value["data_subtype"]).replace("test-dev", "test")
    folders = ImageFolders.of(options.images, document.path, [subset, f"images/{subset}"])
    annotations = options.annotations or _annotations_beside(document.path)
    answers = _answers(annotations) if annotations else {}
    questions = []
    for record in document.records(document.value["questions"]):
        number = record.whole("question_id")
        given, kind = answers.get(number, ((), ""))
        if annotations and not given:
            raise InputError(
                f"{annotations}: no answers to question {number}",
                why="the questions and the annotations are not of the same split.",
                fix="name the annotations of this split with --annotations.",
            )
        image = folders.find(f"COCO_{subset}_{record.whole('image_id'):012d}.jpg")
        key = HumanAnswers(given)
        questions.append(Question(str(number), record.text("question"), (image,), key, kind))
    files = (document.path, *([annotations] if annotations else []))
    return Dataset(tuple(questions), files)


def _annotations_beside(questions: Path) -> Path | None:
    name = questions.name.replace("OpenEnded_", "").replace("questions", "annotations")
    beside = questions.with_name(name)
    return beside if beside != questions and beside.is_file() else None


def _answers(path: Path) -> dict[int, tuple[tuple[str, ...], str]]:
    """Answers and answer type by question."""
    document = Document.read(path)
    listed = document.value.get("annotations") if isinstance(document.value, dict) else None
    return {
        record.whole("question_id"): (
            tuple(answer.text("answer") for answer in record.parts("answers")),
            record.optional_text("answer_type") or "",
        )
        for record in document.records(listed or [])
    }


def _submit(_document: Document, read: Mapping[str, str]) -> str:
    return json.dumps([{"question_id": int(name), "answer": it} for name, it in read.items()])


FORMAT = Format(
    name="vqav2",
    title="VQAv2",
    metric="VQA accuracy",
    suffix=SHORT_ANSWER,
    recognises=_recognises,
    read=_read,
    takes=frozenset({"annotations"}),
    submission=("submission.json", _submit),
)
