import json
from pathlib import Path

import pytest
from PIL import Image

from atp_models.demo.data.samples import IMAGES, Sample, image_path, write_samples
from atp_models.demo.scenes.questions import Question
from atp_models.demo.show import main, one_of_each_kind
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions about two images, of two kinds."""
    (tmp_path / "set" / IMAGES).mkdir(parents=True)
    for number in (0, 1):
        Image.new("RGB", (60, 60), ("red", "blue")[number]).save(
            tmp_path / "set" / image_path(number)
        )
    samples = [
        Sample(0, Question("what", "What is at the top?", "dog"), 1),
        Sample(0, Question("yes/no", "Is there a dog?", "yes"), 1),
        Sample(1, Question("yes/no", "Is there an owl?", "no"), 1),
    ]
    write_samples(tmp_path / "set" / "set.json", "set", samples)
    return tmp_path / "set" / "set.json"


def test_one_question_of_each_kind_is_chosen_about_different_images(data: Path) -> None:
    chosen = one_of_each_kind(data)
    assert [record["kind"] for record in chosen] == ["what", "yes/no"]
    assert [record["image"] for record in chosen] == [image_path(0), image_path(1)]


@pytest.mark.parametrize("content", ["{", "[1]", '[{"kind": "what"}]'])
def test_a_file_that_is_no_data_set_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(InputError, match=r"set\.json"):
        one_of_each_kind(tmp_path / "set.json")


@pytest.mark.slow
def test_answers_are_those_of_the_bundle_and_judged_by_the_truth(
    tiny_bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    assert main([str(tiny_bundle), str(data), "--pictures", str(pictures), "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    with Session.open(tiny_bundle) as session:
        for shown in document["answers"]:
            short = GenerationOptions(max_new_tokens=16)
            expected = session.conversation().ask(shown["question"], [shown["image"]], short)
            assert shown["answer"] == expected.text.strip()
            points = [point.kept for point in expected.statistics.points]
            assert shown["kept"] == points
            assert shown["question"] in printed.err
            Image.open(shown["picture"]).verify()
    assert document["right"] == sum(s["answer"] == s["truth"] for s in document["answers"])
    assert sorted(path.name for path in pictures.iterdir()) == ["what.png", "yes-no.png"]


def test_the_runtimes_error_is_passed_on_with_its_exit_code(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "no-bundle"), str(data)]) == 2
    assert "fix:" in capsys.readouterr().err
