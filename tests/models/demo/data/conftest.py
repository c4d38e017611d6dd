"""Tiny packages: every emoji one red pixel, and an easy-VQA of three images."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from atp_models.demo.data import sets
from atp_models.demo.parts import EASY_VQA, Part
from atp_models.demo.scenes.vocabulary import PICTURES

# Text, answer, number of the image: as the package has them, not in the images' order.
EASY_QUESTIONS = [
    ["what is the blue shape?", "rectangle", 2],
    ["is there a circle?", "yes", 0],
    ["what color is the shape?", "teal", 0],
    ["is there no circle?", "no", 0],
    ["what shape is in the image?", "circle", 1],
]


def png(side: int, colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "png")
    return stream.getvalue()


def write_easy_vqa(directory: Path) -> Part:
    """The package with the same five questions in both halves of its split."""
    archive = directory / EASY_VQA.archive
    with zipfile.ZipFile(archive, "w") as package:
        for split in ("train", "test"):
            folder = f"easy_vqa/data/{split}"
            package.writestr(f"{folder}/questions.json", json.dumps(EASY_QUESTIONS))
            for number, colour in enumerate(("red", "lime", "blue")):
                package.writestr(f"{folder}/images/{number}.png", png(64, colour))
    return replace(EASY_VQA, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())


@pytest.fixture
def easy_vqa(tmp_path: Path) -> tuple[Part, Path]:
    """The tiny package as a part, and where its archive is."""
    part = write_easy_vqa(tmp_path)
    return part, tmp_path / part.archive


@pytest.fixture
def cache(
    tmp_path: Path, make_tarball: Callable[..., Part], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cache with tiny packages in the place of those that the data sets are made of."""
    folder = tmp_path / "cache"
    folder.mkdir()
    red = png(4, "red")
    names = {"noto": "img/google/64/{}.png", "fluent": "assets/{}.webp"}
    parts = {
        style: make_tarball(folder, style, {name.format(p.code): red for p in PICTURES})
        for style, name in names.items()
    }
    easy = write_easy_vqa(folder)
    for name, source in sets.SETS.items():
        part = parts[source.style] if name.startswith("scenes") else easy
        monkeypatch.setitem(sets.SETS, name, replace(source, part=part))
    return folder
