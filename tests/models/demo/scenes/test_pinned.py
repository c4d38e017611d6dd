"""What the trained deltas were trained on. Changing these values invalidates the deltas.

A failure here means that scenes, words or drawings became others than those the shipped
weights know and the published scores were measured on: undo the change, or train again.
"""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest

from atp_models.demo.scenes.artwork import Artwork
from atp_models.demo.scenes.captions import captions
from atp_models.demo.scenes.drawing import draw
from atp_models.demo.scenes.layout import make_scene
from atp_models.demo.scenes.questions import questions

SCENES = range(100)
SPLITS = range(4)
LAYOUT_SHA256 = "96406821f17edd7c34585af37922139ce05fb217c9272d0a5f91f7e8adad8e84"
QUESTIONS_SHA256 = "b9150dd1af9039a094e2336793d496db1b93588395896786a3b5d3d4f41c2943"
# Of scenes 0 to 8 of split 0 in one-coloured squares, mean red, green and blue.
MEAN_COLOURS = [
    (159.8, 110.7, 63.5),
    (179.6, 149.5, 74.1),
    (188.7, 121.8, 101.8),
    (190.0, 128.9, 106.9),
    (186.8, 178.8, 126.4),
    (169.6, 141.4, 117.7),
    (199.3, 171.4, 142.9),
    (168.9, 104.6, 72.5),
    (174.1, 111.3, 102.7),
]


def sha256(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_first_scenes_of_every_split_are_the_ones_trained_on() -> None:
    lines = [json.dumps(asdict(make_scene(s, n)), sort_keys=True) for s in SPLITS for n in SCENES]
    assert sha256(lines) == LAYOUT_SHA256


def test_their_questions_are_the_ones_trained_on() -> None:
    lines = []
    for split in SPLITS:
        for number in SCENES:
            scene = make_scene(split, number)
            asked = [*questions(scene, 1), *questions(scene, 3), *captions(scene)]
            lines += [f"{q.kind}\t{q.text}\t{q.answer}" for q in asked]
    assert sha256(lines) == QUESTIONS_SHA256


@pytest.mark.parametrize("number", range(9))
def test_their_drawings_have_the_colours_trained_on(square_artwork: Artwork, number: int) -> None:
    # No hash: libraries may round a pixel the other way.
    pixels = np.asarray(draw(make_scene(0, number), square_artwork))
    assert pixels.mean(axis=(0, 1)) == pytest.approx(MEAN_COLOURS[number], abs=0.2)
