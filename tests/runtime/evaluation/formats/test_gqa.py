import json


def entry(**fields: object) -> dict[str, object]:
    return {
        "semantic": [],
        "entailed": [],
        "equivalent": ["201307251"],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "13-weather"},
        "answer": "no",
        "semanticStr": "",
        "annotations": {},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
        **fields,
    }


def test_question_is_taken_with_the_short_answer_and_its_structural_type(put, touch, read) -> None:
    photo = touch("images/n161313.jpg")
    found, dataset = read(
        put("questions/testdev_balanced_questions.json", {"201307251": entry(), "20": entry()})
    )
    assert found.name == "gqa"
    assert [it.id for it in dataset.questions] == ["201307251", "20"]
    asked = dataset.questions[0]
    assert (asked.prompt, asked.images[0].resolve()) == ("Is it overcast?", photo)
    assert (asked.kind, asked.key.mark("No.").score) == ("verify", 1)
    assert asked.key.mark("No, it is clear").score == 0


def test_predictions_can_be_submitted_when_the_answers_are_not_public(put, read) -> None:
    test = entry()
    del test["answer"], test["types"]
    found, dataset = read(put("submission_all_questions.json", {"20": test}))
    assert (dataset.questions[0].key.truth, dataset.questions[0].kind) == (None, "")
    _, submit = found.submission
    assert json.loads(submit(None, {"20": "no"})) == [{"questionId": "20", "prediction": "no"}]
