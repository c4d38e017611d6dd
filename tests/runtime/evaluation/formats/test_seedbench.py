import pytest

from atp_runtime.errors import InputError


def entry(**fields: object) -> dict[str, object]:
    return {
        "answer": "A",
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "data_id": "1454426_2591111986",
        "data_type": "image",
        "question": "How many towels are in the image?",
        "question_id": "101669",
        "question_type_id": 5,
        **fields,
    }


def test_questions_about_images_are_taken_and_videos_left_out(put, touch, read) -> None:
    photo = touch("SEED-Bench-image/1454426_2591111986")  # published without a suffix
    video = entry(data_type="video", data_id="94328.webm", question_id="v1738")
    found, dataset = read(
        put(
            "SEED-Bench.json",
            {"questions": [entry(), video], "question_type": {"Instances Counting": 5}},
        )
    )
    (asked,) = dataset.questions
    assert (found.name, asked.id, asked.kind) == ("seed", "101669", "Instances Counting")
    assert asked.images == (photo,)
    assert asked.prompt.endswith("image?\nA. One\nB. Two\nC. Three\nD. Four")
    assert asked.key.truth == "A"


def test_kind_is_a_number_when_the_file_names_none(put, read) -> None:
    second = entry(data_type="Single Image", question_id="5_0")
    _, dataset = read(put("SEED-Bench.json", {"questions": [second]}))
    assert dataset.questions[0].kind == "type 5"


def test_file_is_refused_when_it_is_all_about_videos(put, read) -> None:
    with pytest.raises(InputError, match="no question about an image"):
        read(put("SEED-Bench.json", {"questions": [entry(data_type="video")]}))
