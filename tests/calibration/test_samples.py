from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from atp_calibration.samples import Samples, read_samples
from atp_runtime.errors import InputError


def ids(samples: Samples) -> set[str]:
    return {sample.question.id for sample in samples.samples}


def test_prompts_and_images_are_those_of_the_data(scenes: Path, photos: list[Path]) -> None:
    samples = read_samples(scenes)
    assert {sample.prompt for sample in samples.samples} == {"What is this?", "Is it red?"}
    assert {path for sample in samples.samples for path in sample.images()} == set(photos)


def test_unreadable_images_are_skipped_and_counted(scenes: Path) -> None:
    samples = read_samples(scenes)
    assert len(samples) == 6
    assert {it.id for it in samples.skipped} == {"broken-0", "broken-1"}
    assert all("broken.png" in it.problem for it in samples.skipped)


@pytest.mark.parametrize("seed", range(5))
def test_another_sample_is_drawn_for_one_that_cannot_be_read(scenes: Path, seed: int) -> None:
    assert len(read_samples(scenes, 6, seed)) == 6


def test_more_samples_are_the_same_and_others(scenes: Path) -> None:
    few, more = (read_samples(scenes, limit, seed=3) for limit in (2, 5))
    assert len(few) == 2
    assert len(more) == 5
    assert ids(few) < ids(more)


def test_questions_about_one_image_follow_one_another(scenes: Path) -> None:
    images = [sample.question.images for sample in read_samples(scenes).samples]
    changes = sum(a != b for a, b in pairwise(images))
    assert changes == len(set(images)) - 1


@pytest.mark.parametrize("limit", [0, 1])
def test_one_sample_is_too_few(scenes: Path, limit: int) -> None:
    with pytest.raises(InputError, match=f"{limit} sample"):
        read_samples(scenes, limit)


def test_data_without_readable_images_names_the_first(scenes: Path, tmp_path: Path) -> None:
    broken = [it for it in json.loads(scenes.read_text()) if "broken" in it["image"]]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(broken))
    with pytest.raises(InputError, match=r"0 usable.*2 skipped.*broken\.png"):
        read_samples(data)


def test_missing_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_samples(tmp_path / "nothing.json")
