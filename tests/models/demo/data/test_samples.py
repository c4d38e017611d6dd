import json
from pathlib import Path

from atp_models.demo.data.samples import Sample, image_path, write_samples
from atp_models.demo.scenes.questions import Question


def test_records_are_llava_conversations_of_one_question(tmp_path: Path) -> None:
    samples = [
        Sample(7, Question("what", "What is at the top?", "dog"), objects=3),
        Sample(7, Question("count", "How many dogs are there?", "2"), objects=3),
    ]
    write_samples(tmp_path / "set.json", "set", samples)
    assert json.loads((tmp_path / "set.json").read_text()) == [
        {
            "id": "set-000000",
            "image": "images/000007.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is at the top?"},
                {"from": "gpt", "value": "dog"},
            ],
            "kind": "what",
            "objects": 3,
        },
        {
            "id": "set-000001",
            "image": "images/000007.png",
            "conversations": [
                {"from": "human", "value": "<image>\nHow many dogs are there?"},
                {"from": "gpt", "value": "2"},
            ],
            "kind": "count",
            "objects": 3,
        },
    ]


def test_no_samples_are_an_empty_list(tmp_path: Path) -> None:
    write_samples(tmp_path / "set.json", "set", [])
    assert json.loads((tmp_path / "set.json").read_text()) == []


def test_images_sort_by_number_as_files_do() -> None:
    assert image_path(99) < image_path(100)
