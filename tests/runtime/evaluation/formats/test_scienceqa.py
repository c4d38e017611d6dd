import pytest

from atp_runtime.errors import InputError


def problem(**fields: object) -> dict[str, object]:
    return {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona"],
        "answer": 1,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map",
        "lecture": "",
        "solution": "",
        "split": "test",
        **fields,
    }


@pytest.fixture
def data(put, touch, tmp_path):
    put(
        "problems.json",
        {"4": problem(hint="A map."), "5": problem(image=None), "6": problem(), "7": problem()},
    )
    put("pid_splits.json", {"train": ["7"], "test": ["4", "5", "6"]})
    for number in ("4", "6"):
        touch(f"images/test/{number}/image.png")
    return tmp_path


def test_questions_of_the_test_split_are_taken_when_they_have_an_image(data, read) -> None:
    found, dataset = read(data)
    assert (found.name, [it.id for it in dataset.questions]) == ("scienceqa", ["4", "6"])
    asked = dataset.questions[0]
    assert asked.prompt == (
        "Context: A map.\nWhich of these states is farthest north?\n"
        "A. West Virginia\nB. Louisiana\nC. Arizona"
    )
    assert asked.images == (data / "images/test/4/image.png",)
    assert (asked.kind, asked.key.truth) == ("social science", "B")
    assert asked.key.mark("Louisiana").score == 1
    assert dataset.questions[1].prompt.startswith("Which")
    assert [path.name for path in dataset.files] == ["problems.json", "pid_splits.json"]


def test_other_split_is_taken_when_it_is_named(data, read) -> None:
    _, dataset = read(data / "problems.json", split="train")
    assert [it.id for it in dataset.questions] == ["7"]
    with pytest.raises(InputError, match="no split 'minival'"):
        read(data, split="minival")


def test_problem_is_refused_when_its_answer_is_no_choice(put, read, data) -> None:
    put("problems.json", {n: problem(answer=3) for n in "456"})
    with pytest.raises(InputError, match="problem 4: the answer is 'D', of 3 options"):
        read(data)


def test_problem_is_refused_when_it_is_missing(put, read, data) -> None:
    put("problems.json", {"4": problem()})
    with pytest.raises(InputError, match="no problem 5"):
        read(data)
