from pathlib import Path

import pytest

from atp_runtime.errors import InputError
from atp_runtime.evaluation.image_files import ImageFolders, check_images
from atp_runtime.evaluation.keys.exact_match import ExactMatch
from atp_runtime.evaluation.question import EmbeddedImage, Question


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def asked(*images) -> Question:
    return Question("1", "?", images, ExactMatch("x"))


def test_image_is_found_beside_the_data_or_where_downloads_have_it(tmp_path: Path) -> None:
    beside, usual = touched(tmp_path / "1.jpg"), touched(tmp_path / "val/2.jpg")
    folders = ImageFolders.of(None, tmp_path / "data.json", ["val"])
    assert (folders.find("1.jpg"), folders.find("2.jpg")) == (beside, usual)


def test_image_is_found_in_the_folder_that_was_named(tmp_path: Path) -> None:
    touched(tmp_path / "1.jpg")
    named = touched(tmp_path / "named/val/1.jpg")
    folders = ImageFolders.of(tmp_path / "named", tmp_path / "data.json", ["val"])
    assert folders.find("1.jpg") == named


def test_image_is_found_under_the_first_name_that_exists(tmp_path: Path) -> None:
    folders = ImageFolders.of(None, tmp_path)
    assert folders.find("1", "1.png") == tmp_path / "1"
    png = touched(tmp_path / "1.png")
    assert folders.find("1", "1.png") == png


def test_missing_images_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    there = touched(tmp_path / "0.jpg")
    missing = [tmp_path / f"{n}.jpg" for n in range(1, 6)]
    with pytest.raises(InputError, match=r"5 of 6 images are missing: .*1\.jpg, .*2\.jpg") as it:
        check_images([asked(there, *missing), asked(*missing)])
    assert "4.jpg" not in str(it.value)


def test_nothing_is_missing_when_images_are_in_the_data_or_there_are_none(tmp_path: Path) -> None:
    check_images([asked(), asked(EmbeddedImage("1", "")), asked(touched(tmp_path / "0.jpg"))])
