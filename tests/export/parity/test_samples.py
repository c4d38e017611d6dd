"""Prompts and pictures of a parity run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_export.parity.samples import Prompt, image_prompt, make_prompts, picture
from atp_models.architecture import ModelSpec, read_architecture
from atp_models.checkpoint import Checkpoint

PATCHES, IMAGE = 16, 504


@pytest.fixture(scope="module")
def spec(tiny: Any) -> ModelSpec:
    return read_architecture(Checkpoint.open(tiny.checkpoint))


def placeholders(prompt: Prompt) -> int:
    return int((prompt.ids == IMAGE).sum())


def test_prompts_are_two_images_and_text_when_the_images_are_small(spec: ModelSpec) -> None:
    with_images, text = make_prompts(spec, 2048)

    assert placeholders(with_images) == 2 * PATCHES
    assert with_images.pixel_values is not None
    assert with_images.pixel_values.shape == (2, 3, 32, 32)
    assert with_images.ids[-1] != IMAGE
    assert (placeholders(text), text.pixel_values) == (0, None)


def test_eight_decode_steps_and_a_turn_follow_when_there_is_room(spec: ModelSpec) -> None:
    for prompt in make_prompts(spec, 2048):
        assert prompt.moments == ("prefill", *["decode"] * 8, "turn")
        assert [len(ids) for _, ids in prompt.following[:8]] == [1] * 8
        assert len(prompt.following[8][1]) > 1


@pytest.mark.parametrize(("longest", "images"), [(71, 1), (56, 1), (55, 0)])
def test_images_are_as_many_as_fit(spec: ModelSpec, longest: int, images: int) -> None:
    prompts = make_prompts(spec, longest)

    assert [placeholders(prompt) for prompt in prompts] == [images * PATCHES, 0][-len(prompts) :]
    assert len(prompts) == 1 + bool(images)


@given(longest=st.integers(1, 200))
def test_prompts_never_exceed_the_context(spec: ModelSpec, longest: int) -> None:
    for prompt in make_prompts(spec, longest):
        assert 1 <= len(prompt.ids) <= prompt.tokens <= longest


def test_text_is_of_the_vocabulary_and_never_a_placeholder(spec: ModelSpec) -> None:
    for prompt in make_prompts(spec, 2048):
        text = np.concatenate([ids for _, ids in prompt.following])
        assert (text != IMAGE).all()
        assert (prompt.ids >= 0).all()
        assert max(prompt.ids.max(), text.max()) < spec.text.vocabulary


def test_prompts_are_the_same_each_time(spec: ModelSpec) -> None:
    first, second = (image_prompt(spec, 2, 2048) for _ in range(2))

    assert (first.ids == second.ids).all()
    assert np.array_equal(first.pixel_values, second.pixel_values)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(32, 32), (224, 336)])
def test_a_picture_is_normalised_and_has_coarse_structure(size: tuple[int, int]) -> None:
    image = picture(size, 0)

    assert image.shape == (3, *size)
    assert image.dtype == np.float32
    assert abs(float(image.mean())) < 1e-4
    assert float(image.std()) == pytest.approx(1, abs=1e-4)
    neighbours = np.corrcoef(image[:, :, 1:].ravel(), image[:, :, :-1].ravel())[0, 1]
    assert neighbours > 0.5


def test_pictures_differ_by_number() -> None:
    assert not np.allclose(picture((32, 32), 0), picture((32, 32), 1))
