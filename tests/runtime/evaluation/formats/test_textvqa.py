def entry(**fields: object) -> dict[str, object]:
    return {
        "question": "what is the brand?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Person"],
        "flickr_original_url": "https://example.org/a.jpg",
        "image_width": 1024,
        "answers": ["nous les gosses"] * 4 + ["dakota"] * 6,
        "question_tokens": ["what"],
        "question_id": 34602,
        "set_name": "val",
        **fields,
    }


def test_question_is_taken_with_its_ten_answers(put, touch, read) -> None:
    photo = touch("train_images/003a8ae2ef43b901.jpg")
    found, dataset = read(put("TextVQA_0.5.1_val.json", {"data": [entry()]}))
    (asked,) = dataset.questions
    assert (found.name, asked.id, asked.prompt) == ("textvqa", "34602", "what is the brand?")
    assert asked.images == (photo,)
    assert asked.key.mark("Dakota").score == 1
    assert asked.key.mark("nous les gosses").score == 1


def test_truth_is_not_known_when_the_test_set_is_read(put, read) -> None:
    test = entry()
    del test["answers"]
    _, dataset = read(put("TextVQA_0.5.1_test.json", {"data": [test]}))
    assert dataset.questions[0].key.truth is None
