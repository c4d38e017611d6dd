"""Scorers learn to look at pictures, and at what a question names."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tests.models.training.conftest import (
    FEATURES,
    SIDE,
    load,
    pixels,
    random_modules,
    row_of,
)
from torch import Tensor

from atp_models.demo.curriculum.looks import Look
from atp_models.demo.curriculum.patch_words import BACKGROUND, GRID, PatchLabels
from atp_models.demo.curriculum.scorer_warmup import Lesson, Schedule, warm_up_scorers
from atp_models.demo.scenes.layout import make_scene
from atp_models.demo.scenes.vocabulary import NAMES
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.training.packing import PatchGrid, pack
from atp_models.training.records import Record, Turn
from atp_models.training.rows import make_batch
from atp_models.training.soft_decoder import SoftDecoder


def record(question: str, answer: str) -> Record:
    return Record("r", (Path("0.png"),), (Turn("user", question), Turn("assistant", answer)), "0")


def labels(**where: list[int]) -> PatchLabels:
    """Labels of a scene that shows nouns at some patches."""
    noun = torch.full((GRID * GRID,), BACKGROUND)
    for name, patches in where.items():
        noun[patches] = NAMES.index(name)
    nothing = torch.full_like(noun, -1)
    return PatchLabels(noun, nothing, nothing, torch.ones(len(noun), dtype=torch.bool))


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Where is the dog?", "top left", {1, 2}),
        ("How many foxes are there?", "1", {9}),
        ("What is at the top right?", "fox", {9}),
        ("Is the dog above the fox?", "yes", {1, 2, 9}),
        ("Is there a pig?", "no", set()),
        ("Describe the pictures.", "small dog top left, fox right", {1, 2, 9}),
    ],
)
def test_what_a_question_or_its_answer_names_is_asked_about(
    question: str, answer: str, expected: set[int]
) -> None:
    look = Look.of(labels(dog=[1, 2], fox=[9]), [record(question, answer)])
    assert set(look.asked[0].nonzero().flatten().tolist()) == expected
    assert set(look.pictures.nonzero().flatten().tolist()) == {1, 2, 9}


def test_words_within_words_name_nothing() -> None:
    look = Look.of(labels(car=[4]), [record("Is there a carrot?", "no")])
    assert not look.asked.any()


def test_labels_of_a_scene_name_its_pictures() -> None:
    scene = make_scene(0, 0)
    name = scene.items[0].picture.name
    look = Look.of(PatchLabels.of(scene), [record(f"Where is the {name}?", "top")])
    assert 0 < int(look.asked.sum()) <= int(look.pictures.sum())


QUESTIONS = [row_of(0, 5, answer=2, seed=seed) for seed in (1, 2)]
PICTURES, ASKED = [4, 5, 10, 11, 20], [[4, 5], [20]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scorers") / "checkpoint"
    write_random_checkpoint(path, tiny_config(layers=6, image_size=8 * SIDE, kv_heads=2))
    return path


def decoder_of(checkpoint: Path) -> SoftDecoder:
    grid = PatchGrid.of((SIDE, SIDE))
    decoder = SoftDecoder(load(checkpoint), random_modules((2, 4)), grid).eval()
    return decoder.requires_grad_(False)


def lesson() -> Lesson:
    pictures, asked = torch.zeros(FEATURES).bool(), torch.zeros(len(QUESTIONS), FEATURES).bool()
    pictures[PICTURES] = True
    for number, patches in enumerate(ASKED):
        asked[number, patches] = True
    batch = make_batch([pack(QUESTIONS)], FEATURES, pixel_values=pixels(1))
    return Lesson(batch, Look(pictures, asked, torch.ones(FEATURES).bool()))


def scores(decoder: SoftDecoder, question: int, point: int) -> tuple[Tensor, Tensor]:
    batch = make_batch([QUESTIONS[question]], FEATURES, pixel_values=pixels(1))
    found, left = decoder.scores_at(batch, point)
    assert left.visual.sum() == FEATURES
    return found.own[left.visual], found.cross[left.visual]


@pytest.mark.parametrize("half", [False, True])
def test_scores_come_to_favour_what_was_taught(checkpoint: Path, half: bool) -> None:
    decoder = decoder_of(checkpoint)
    before = {name: value.clone() for name, value in decoder.named_parameters()}

    changed = warm_up_scorers(
        decoder,
        [1],
        itertools.repeat(lesson()),
        schedule=Schedule(steps=150, rows=1, cross_weight=0.3, seed=0),
        half=half,
        report=lambda _: None,
    )

    elsewhere = [number for number in range(FEATURES) if number not in PICTURES]
    for question, asked in enumerate(ASKED):
        own, cross = scores(decoder, question, 0)
        in_order = own[PICTURES].unsqueeze(1) > own[elsewhere]
        assert in_order.float().mean() > 0.95
        assert cross[asked].mean() > 5 * cross.mean()
    attention = "model.language_model.layers.1.self_attn"
    assert set(changed) == {f"{attention}.{name}_proj.weight" for name in "qk"}
    for name, value in decoder.named_parameters():
        taught = name.removeprefix("llava.")
        assert torch.equal(value, before[name]) != (taught in changed), name


def test_projections_are_those_that_pruning_points_read(checkpoint: Path) -> None:
    decoder = decoder_of(checkpoint)
    batch = make_batch([QUESTIONS[0]], FEATURES, pixel_values=pixels(1))
    (layer,) = decoder.scored_layers(batch, [1])
    torch.testing.assert_close(layer.own[batch.visual[0]], scores(decoder, 0, 0)[0])
    assert layer.change == 0
