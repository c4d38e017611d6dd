"""easy-VQA (Victor Zhou): images of one shape, with its official split."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from atp_models.demo.data.samples import Sample, Source, too_few
from atp_models.demo.parts import EASY_VQA, Part
from atp_models.demo.scenes.layout import SIDE
from atp_models.demo.scenes.questions import Question

_FOLDER = "easy_vqa/data"
_SHAPES = ("circle", "rectangle", "triangle")
_CHOICE_SEED = 13


@dataclass(frozen=True)
class EasyVqa:
    """One half of the official split.

    Attributes:
        split: "train" or "test".
        part: The package.
    """

    split: str
    part: Part = EASY_VQA

    def samples(
        self, archive: Path, *, images: int | None = None, questions: int | None = None
    ) -> list[Sample]:
        """See `Source.samples`; which questions are taken, if not all, is a seeded choice."""
        with zipfile.ZipFile(archive) as package:
            rows = json.loads(package.read(f"{_FOLDER}/{self.split}/questions.json"))
        everything = sorted(
            (_sample(*row) for row in rows if images is None or row[2] < images),
            key=lambda sample: sample.image,
        )
        if questions is None:
            return everything
        if questions > len(everything):
            raise too_few(questions, len(everything))
        chosen = np.random.default_rng(_CHOICE_SEED).permutation(len(everything))[:questions]
        return [everything[number] for number in sorted(chosen)]

    def drawer(self, archive: Path) -> Callable[[int], Image.Image]:
        """See `Source.drawer`; the images of 64 pixels are enlarged."""
        folder = f"{_FOLDER}/{self.split}/images/"
        with zipfile.ZipFile(archive) as package:
            names = [name for name in package.namelist() if name.startswith(folder)]
            files = {name: package.read(name) for name in names}

        def image(number: int) -> Image.Image:
            small = Image.open(io.BytesIO(files[f"{folder}{number}.png"])).convert("RGB")
            return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)

        return image


def _sample(text: str, answer: str, image: int) -> Sample:
    return Sample(image, Question(_kind(answer), text, answer), objects=1)


def _kind(answer: str) -> str:
    if answer in {"yes", "no"}:
        return "yes/no"
    return "shape" if answer in _SHAPES else "colour"


EASY_VQA_SETS: dict[str, Source] = {
    "easy-vqa-train": EasyVqa("train"),
    "easy-vqa-test": EasyVqa("test"),
}
