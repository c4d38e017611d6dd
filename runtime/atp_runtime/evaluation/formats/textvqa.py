"""TextVQA 0.5.1 (textvqa.org): one file, ten answers to each question, images of Open Images."""

from __future__ import annotations

from atp_runtime.evaluation.data_file import Document, first, has_fields
from atp_runtime.evaluation.formats.format import SHORT_ANSWER, Dataset, Format, ReadOptions
from atp_runtime.evaluation.image_files import ImageFolders
from atp_runtime.evaluation.keys.human_answers import HumanAnswers
from atp_runtime.evaluation.question import Question

_FOLDERS = ("train_images", "test_images", "train_val_images/train_images")


def _recognises(document: Document) -> bool:
    return has_fields(document.value, ["data"]) and has_fields(
        first(document.value["data"]), ["question_id", "image_id", "question"]
    )


def _read(document: Document, options: ReadOptions) -> Dataset:
    folders = ImageFolders.of(options.images, document.path, _FOLDERS)
    questions = [
        Question(
            id=record.text("question_id"),
            prompt=record.text("question"),
            images=(folders.find(f"{record.text('image_id')}.jpg"),),
            key=HumanAnswers(record.texts("answers") if "answers" in record.fields else ()),
        )
        for record in document.records(document.value["data"])
    ]
    return Dataset(tuple(questions), (document.path,))


FORMAT = Format(
    name="textvqa",
    title="TextVQA",
    metric="VQA accuracy",
    suffix=SHORT_ANSWER,
    recognises=_recognises,
    read=_read,
)
