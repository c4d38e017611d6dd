import json
from pathlib import Path

import pytest

from atp_runtime.errors import InputError

HUMAN, GPT = "human", "gpt"


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": (HUMAN, GPT)[n % 2], "value": value} for n, value in enumerate(values)]


def record(name: str, *values: str, **fields: object) -> dict[str, object]:
    return {"id": name, "conversations": turns(*values), **fields}


def test_question_and_answer_are_taken_with_image_kind_and_numbers(put, touch, read) -> None:
    photo = touch("coco/1.jpg")
    data = put(
        "data.json",
        [
            record(
                "x",
                "<image>\nWhat is it?\nBe brief.",
                "A dog.",
                image="coco/1.jpg",
                kind="what",
                objects=3,
                share=0.5,
                seen=True,
            )
        ],
    )
    found, dataset = read(data)
    (asked,) = dataset.questions
    assert (found.name, found.suffix, dataset.files) == ("llava", "", (data,))
    assert (asked.id, asked.prompt, asked.images) == ("x", "What is it?\nBe brief.", (photo,))
    assert (asked.kind, asked.numbers) == ("what", {"objects": 3, "share": 0.5})
    assert (asked.key.truth, asked.key.mark("a dog").score) == ("A dog.", 1)


def test_every_human_turn_is_a_question_about_the_images(put, read) -> None:
    values = ("<image><image>One?", "1", "Two?", "2")
    data = put("d.jsonl", json.dumps(record("x", *values, image=["a.png", "b.png"])))
    _, dataset = read(data)
    assert [(it.id, it.prompt, it.key.truth) for it in dataset.questions] == [
        ("x/1", "One?", "1"),
        ("x/2", "Two?", "2"),
    ]
    assert {it.images for it in dataset.questions} == {
        (data.parent / "a.png", data.parent / "b.png")
    }


def test_truth_is_not_known_when_the_last_turn_is_the_humans(put, read) -> None:
    _, dataset = read(put("d.json", [record("x", "Why?")]))
    (asked,) = dataset.questions
    assert (asked.key.truth, asked.images) == (None, ())


@pytest.mark.parametrize("ids", [("a", "a"), ("a", None)])
def test_records_are_numbered_when_ids_repeat_or_are_missing(put, read, ids) -> None:
    records = [record(name, "Q?", "A") for name in ids]
    if ids[1] is None:
        del records[1]["id"]
    _, dataset = read(put("d.json", records))
    assert [it.id for it in dataset.questions] == ["1", "2"]


def test_images_are_looked_for_where_the_user_says(put, read, tmp_path: Path) -> None:
    data = put("d.json", [record("x", "<image>Q?", "A", image="1.jpg")])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "1.jpg").touch()
    _, dataset = read(data, images=folder)
    assert dataset.questions[0].images == (folder / "1.jpg",)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"conversations": []}, "'conversations' is"),
        ({"conversations": "Q"}, "'conversations' is"),
        ({"conversations": [{"from": "gpt", "value": "A"}]}, "'from' is 'gpt'"),
        ({"conversations": [{"from": "human", "value": ""}]}, "'value' is ''"),
        ({"conversations": [{"from": "human", "value": "<image><image>"}]}, "2 <image> for 1"),
        ({"image": 3.5}, "'image' is 3.5"),
        ({"image": [3]}, "'image' is"),
    ],
)
def test_record_is_refused_by_number_when_it_is_malformed(put, read, wrong, said: str) -> None:
    good = record("x", "<image>Q?", "A", image="1.jpg")
    with pytest.raises(InputError, match=f"record 2.*{said}"):
        read(put("d.json", [good, {**good, "id": "y", **wrong}]))
