import json
from pathlib import Path

import pytest
from PIL import Image

from atp_models.demo.data.baseline import question_only_baseline
from atp_models.demo.data.sets import BASELINE, CARD, SETS, write_data_set
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.schema import to_json


def write(name: str, out: Path, cache: Path, report=lambda line: None, **sizes: int | None) -> dict:
    chosen = {"scenes": None, "questions": None, **sizes}
    return write_data_set(name, out, **chosen, cache_dir=cache, report=report)


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith("scenes")])
def test_a_set_of_scenes_has_the_records_and_exactly_the_images_they_name(
    name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atp_models.demo.data.scene_sets._TRAINING_SCENES", 20)
    card = write(name, tmp_path / "out", cache, scenes=6, questions=40)
    records = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert len(records) == 40 == sum(card["questions"].values())
    named = {record["image"] for record in records}
    images = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out" / "images").iterdir()}
    assert images == named
    assert card["images"] == len(named)
    for image in named:
        assert Image.open(tmp_path / "out" / image).size == (336, 336)


def test_easy_vqa_is_written_whole_with_its_baseline(cache: Path, tmp_path: Path) -> None:
    card = write("easy-vqa-test", tmp_path / "out", cache)
    assert card["questions"] == {"colour": 1, "shape": 2, "yes/no": 2}
    assert card["licence"] == "MIT"
    samples = SETS["easy-vqa-train"].samples(cache / SETS["easy-vqa-train"].part.archive)
    asked = [sample.question for sample in samples]
    expected = to_json(question_only_baseline(asked, asked))  # both halves are the same here
    assert json.loads((tmp_path / "out" / BASELINE).read_text()) == expected


def test_training_sets_have_no_baseline(cache: Path, tmp_path: Path) -> None:
    write("easy-vqa-train", tmp_path / "out", cache)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(CARD, "easy-vqa-train.json", "images"),
    ]


def test_two_runs_write_the_same_files(cache: Path, tmp_path: Path) -> None:
    for out in ("first", "second"):
        write("scenes-train", tmp_path / out, cache, scenes=3)
    assert content(tmp_path / "first") == content(tmp_path / "second")


def test_a_second_run_does_nothing_and_other_sizes_write_anew(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write("scenes-train", out, cache, scenes=3)
    written = (out / CARD).stat().st_mtime_ns
    lines: list[str] = []
    card = write("scenes-train", out, cache, lines.append, scenes=3)
    assert (out / CARD).stat().st_mtime_ns == written
    assert card["images"] == 3
    assert len(lines) == 1
    assert "nothing to do" in lines[0]
    assert write("scenes-train", out, cache, scenes=2)["images"] == 2
    assert len(list((out / "images").iterdir())) == 2


def test_a_set_that_lost_a_file_is_written_again(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write("scenes-train", out, cache, scenes=3)
    before = content(out)
    (out / "scenes-train.json").unlink()
    write("scenes-train", out, cache, scenes=3)
    assert content(out) == before


def test_a_directory_of_somebody_else_is_refused_and_left_alone(
    cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "theirs"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        write("scenes-train", out, cache, scenes=3)
    assert content(out) == {"thesis.txt": b"years of work"}


def test_an_interrupted_run_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if "drawing: 2 of" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("scenes-train", tmp_path / "deep" / "out", cache, interrupt, scenes=3)
    assert list((tmp_path / "deep").iterdir()) == []
    assert [line for line in lines if line.startswith("drawing")] == [
        f"drawing: {done} of 3 images" for done in range(3)
    ]


def test_a_wrong_hash_stops_before_anything_is_written(cache: Path, tmp_path: Path) -> None:
    (cache / SETS["scenes-train"].part.archive).write_bytes(b"damaged")
    with pytest.raises(CheckFailedError):
        write("scenes-train", tmp_path / "out", cache, scenes=3)
    assert not (tmp_path / "out").exists()
