import json

import pytest

from atp_runtime.errors import InputError

IMAGE = "COCO_val2014_000000310196.jpg"


def lines(*labels: str, **fields: object) -> str:
    records = [
        {"question_id": n, "image": IMAGE, "text": "Is there a car in the image?", "label": label}
        for n, label in enumerate(labels, 1)
    ]
    return "".join(json.dumps({**record, **fields}) + "\n" for record in records)


def test_questions_are_taken_from_json_lines_named_json(put, touch, read) -> None:
    photo = touch(f"val2014/{IMAGE}")
    found, dataset = read(put("coco_pope_random.json", lines("yes", "no")))
    assert (found.name, found.metric) == ("pope", "yes/no accuracy")
    assert [(it.id, it.kind, it.key.truth) for it in dataset.questions] == [
        ("random/1", "random", "yes"),
        ("random/2", "random", "no"),
    ]
    assert dataset.questions[0].images == (photo,)
    assert dataset.questions[0].prompt == "Is there a car in the image?"


def test_directory_is_all_its_splits(put, read, tmp_path) -> None:
    for split in ("random", "popular", "adversarial"):
        put(f"coco_pope_{split}.json", lines("yes", "no"))
    _, dataset = read(tmp_path)
    assert [it.id for it in dataset.questions] == [
        f"{split}/{n}" for split in ("adversarial", "popular", "random") for n in (1, 2)
    ]
    assert len(dataset.files) == 3


def test_category_is_the_kind_when_the_records_have_one(put, read) -> None:
    _, dataset = read(put("all.jsonl", lines("no", category="popular")))
    assert (dataset.questions[0].id, dataset.questions[0].kind) == ("popular/1", "popular")


def test_label_is_refused_when_it_is_neither_yes_nor_no(put, read) -> None:
    with pytest.raises(InputError, match="record 2: the label is 'maybe'"):
        read(put("coco_pope_random.json", lines("yes", "maybe")))
