"""One question about one image, where it comes from, and how it is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from atp_models.demo.parts import Part
from atp_models.demo.scenes.questions import Question
from atp_runtime.errors import InputError

IMAGES = "images"
"""Folder of a data set that holds its images."""


@dataclass(frozen=True)
class Sample:
    """A question about an image.

    Attributes:
        image: Number of the image in its source.
        question: What is asked, and the answer.
        objects: Pictures in the image.
    """

    image: int
    question: Question
    objects: int


class Source(Protocol):
    """A data set before it is written: questions, and the images they are about."""

    @property
    def part(self) -> Part:
        """The package that its images are made of."""
        ...

    def samples(
        self, archive: Path, *, images: int | None = None, questions: int | None = None
    ) -> list[Sample]:
        """Questions ordered by image, always the same ones.

        Args:
            archive: Of `part`.
            images: Ask about the first so many only; None is the set's own number.
            questions: How many; None is the set's own number.

        Raises:
            InputError: The images do not give so many questions.
        """
        ...

    def drawer(self, archive: Path) -> Callable[[int], Image.Image]:
        """What makes the image of a number, RGB, 336 pixels a side."""
        ...


def too_few(wanted: int, available: int) -> InputError:
    """The error for more questions than the images give."""
    return InputError(
        f"{wanted} questions were asked for, and there are {available}",
        why="a question is asked once only",
        fix="ask for fewer questions, or about more scenes",
    )


def image_path(number: int) -> str:
    """Where a data set keeps an image, relative to its directory."""
    return f"{IMAGES}/{number:06d}.png"


def write_samples(file: Path, name: str, samples: Iterable[Sample]) -> None:
    """Write samples as LLaVA's conversation JSON, one question to a record.

    Records also tell the question's "kind" and the number of "objects" in the image.
    """
    records = [_record(f"{name}-{number:06d}", sample) for number, sample in enumerate(samples)]
    lines = ",\n".join(json.dumps(record) for record in records)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _record(identity: str, sample: Sample) -> dict[str, Any]:
    return {
        "id": identity,
        "image": image_path(sample.image),
        "conversations": [
            {"from": "human", "value": f"<image>\n{sample.question.text}"},
            {"from": "gpt", "value": sample.question.answer},
        ],
        "kind": sample.question.kind,
        "objects": sample.objects,
    }
