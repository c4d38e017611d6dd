"""Reading conversations in LLaVA's format, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models.training.conftest import record, write_conversations

from atp_models.training.records import NO_KIND, Record, Turn, read_records
from atp_runtime.errors import InputError


def written(directory: Path, *records: Any) -> Path:
    file = directory / "data.json"
    file.write_text(json.dumps(list(records)))
    return file


def test_records_have_their_images_turns_and_kind(tmp_path: Path) -> None:
    file = write_conversations(tmp_path, pictures=2)

    records = read_records(file)

    assert len(records) == 4
    assert records[1] == Record(
        name="0-exist",
        images=(tmp_path / "pictures/0.png",),
        turns=(Turn("user", "Is it red?"), Turn("assistant", "yes")),
        key="pictures/0.png",
        kind="exist",
    )


def test_json_lines_are_the_same_records_as_a_list(tmp_path: Path) -> None:
    file = write_conversations(tmp_path, pictures=2)
    lines = tmp_path / "data.jsonl"
    lines.write_text("\n".join(json.dumps(it) for it in json.loads(file.read_text())) + "\n\n")

    assert read_records(lines) == read_records(file)


def test_placeholders_leave_the_text_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").touch()
    value = record("two", "", "ok")
    value["image"] = ["a.png", "b.png"]
    value["conversations"][0]["value"] = "<image>\nCompare with\n<image>"  # type: ignore[index]

    (read,) = read_records(written(tmp_path, value))

    assert read.turns[0].text == "Compare with"
    assert [image.name for image in read.images] == ["a.png", "b.png"]


def test_a_system_prompt_may_come_first_and_a_question_without_answer_last(
    tmp_path: Path,
) -> None:
    value = record("x", "Hi?", "Hello.")
    said = value["conversations"]
    said.insert(0, {"from": "system", "value": "Be kind."})  # type: ignore[attr-defined]
    said.append({"from": "human", "value": "And?"})  # type: ignore[attr-defined]

    (read,) = read_records(written(tmp_path, value))

    assert [turn.role for turn in read.turns] == ["system", "user", "assistant"]
    assert (read.system, read.kind, read.key) == ("Be kind.", NO_KIND, "x")


def changed(**fields: Any) -> dict[str, Any]:
    return {**record("bad", "Q?", "A."), **fields}


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in turns]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (7, "no JSON object"),
        (changed(conversations=[]), "no conversations"),
        (changed(conversations=said(("human", "Q?"))), "no answer"),
        (changed(conversations=said(("gpt", "A."), ("human", "Q?"))), "do not take turns"),
        (changed(conversations=said(("user", "Q?"), ("gpt", "A."))), "from 'user'"),
        (changed(conversations=said(("human", "Q?"), ("gpt", " "))), "answer is empty"),
        (changed(conversations=[{"from": "human"}]), "no text as its value"),
        (changed(image="a.png"), "0 places <image> for 1 images"),
        (changed(image=3), "no path"),
        (
            changed(conversations=said(("human", "<image>"), ("gpt", "A."))),
            "1 places <image> for 0",
        ),
        (
            changed(
                image="a.png",
                conversations=said(
                    ("human", "Q"), ("gpt", "A"), ("human", "<image>"), ("gpt", "B")
                ),
            ),
            "elsewhere than in the first question",
        ),
        (changed(kind=""), "kind"),
    ],
)
def test_malformed_records_are_refused_by_name(tmp_path: Path, value: Any, complaint: str) -> None:
    with pytest.raises(InputError) as refused:
        read_records(written(tmp_path, record("good", "Q?", "A."), value))

    name = "bad" if isinstance(value, dict) else "record 1"
    assert f"1 of 2 records that cannot be used:\n    {name}: " in refused.value.what
    assert complaint in refused.value.what


def test_of_many_malformed_records_the_first_are_shown_and_all_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_records(written(tmp_path, *[changed(id=number, image="x") for number in range(8)]))

    assert "8 of 8 records" in refused.value.what
    assert refused.value.what.count("\n") == 6
    assert refused.value.what.endswith("and 3 more")


def test_missing_images_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    file = write_conversations(tmp_path, pictures=9)
    for number in range(7):
        (tmp_path / f"pictures/{number}.png").unlink()

    with pytest.raises(InputError, match="7 of 9 images") as refused:
        read_records(file)

    assert "pictures/0.png" in refused.value.what
    assert "--images" in refused.value.fix


def test_image_paths_start_from_the_folder_that_is_named(tmp_path: Path) -> None:
    file = write_conversations(tmp_path / "pictures-here", pictures=1)
    moved = file.rename(tmp_path / "data.json")

    assert read_records(moved, tmp_path / "pictures-here")[0].images[0].is_file()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"id": 1}\n{', "\xff"])
def test_files_without_records_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(text.encode("latin-1"))

    with pytest.raises(InputError, match=r"data\.json"):
        read_records(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path / "none.json")
