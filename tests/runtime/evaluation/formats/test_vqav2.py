import json

import pytest

from atp_runtime.errors import InputError

NAME = "v2_OpenEnded_mscoco_{}_questions.json"


def questions(subset: str = "val2014", numbers: tuple[int, ...] = (458752000,)) -> dict:
    asked = [
        {"image_id": 458752, "question": "What is it?", "question_id": number} for number in numbers
    ]
    return {"info": {}, "data_type": "mscoco", "data_subtype": subset, "questions": asked}


def annotations(number: int = 458752000) -> dict:
    answers = [{"answer": "net", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    return {
        "annotations": [
            {
                "question_type": "what is",
                "multiple_choice_answer": "net",
                "answers": answers,
                "image_id": 458752,
                "answer_type": "other",
                "question_id": number,
            }
        ]
    }


def test_questions_find_their_answers_and_images_by_the_official_names(put, touch, read) -> None:
    photo = touch("val2014/COCO_val2014_000000458752.jpg")
    answers = put("v2_mscoco_val2014_annotations.json", annotations())
    data = put(NAME.format("val2014"), questions())
    found, dataset = read(data)
    (asked,) = dataset.questions
    assert (found.name, found.metric) == ("vqav2", "VQA accuracy")
    assert found.suffix == "Answer the question using a single word or phrase."
    assert (asked.id, asked.prompt, asked.images) == ("458752000", "What is it?", (photo,))
    assert (asked.kind, asked.key.truth) == ("other", "net")
    assert asked.key.mark("A net.").score == 1
    assert dataset.files == (data, answers)


def test_answers_may_be_in_a_file_of_another_name(put, read) -> None:
    data, answers = put("q.json", questions()), put("a.json", annotations())
    _, dataset = read(data, annotations=answers)
    assert dataset.questions[0].key.truth == "net"


def test_predictions_can_be_submitted_when_the_answers_are_not_public(put, read) -> None:
    found, dataset = read(put(NAME.format("test-dev2015"), questions("test-dev2015", (7, 8))))
    assert {it.key.truth for it in dataset.questions} == {None}
    assert dataset.questions[0].images[0].name == "COCO_test2015_000000458752.jpg"
    _, submit = found.submission
    assert json.loads(submit(None, {"7": "net", "8": ""})) == [
        {"question_id": 7, "answer": "net"},
        {"question_id": 8, "answer": ""},
    ]


def test_annotations_are_refused_when_they_are_of_another_split(put, read) -> None:
    answers = put("a.json", annotations(number=1))
    with pytest.raises(InputError, match="no answers to question 458752000"):
        read(put("q.json", questions()), annotations=answers)
