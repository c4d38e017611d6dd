import base64
import io

import pytest
from PIL import Image

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
COLUMNS += ["source", "l2-category", "comment", "split"]


def encoded(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


RED = encoded("red")


def row(number: int, **cells: str) -> dict[str, str]:
    return {
        "index": str(number),
        "question": "Which?",
        "A": "one",
        "B": "two",
        "C": "three",
        "answer": "B",
        "category": "counting",
        "image": RED,
        "l2-category": "perception",
        "split": "dev",
        **cells,
    }


def rotations(index: int) -> list[dict[str, str]]:
    """The question in all its orders; the rotated rows refer to the image of the first."""
    options = ["one", "two", "three"]
    rows = []
    for turn in range(3):
        turned = options[turn:] + options[:turn]
        cells = dict(zip("ABC", turned, strict=True)) | {"answer": "ABC"[turned.index("two")]}
        image = RED if turn == 0 else str(index)
        rows.append(row(turn * 1_000_000 + index, **cells, image=image))
    return rows


def table(rows: list[dict[str, str]], without: str = "") -> str:
    names = [name for name in COLUMNS if name != without]
    lines = ["\t".join(names)]
    lines += ["\t".join(cells.get(name, "") for name in names) for cells in rows]
    return "\n".join(lines) + "\n"


def test_question_is_taken_with_hint_options_and_image(put, read) -> None:
    found, dataset = read(put("mmbench_dev_20230712.tsv", table([row(3, hint="Look.")])))
    (asked,) = dataset.questions
    assert (found.name, asked.id, asked.unit, asked.kind) == ("mmbench", "3", "3", "perception")
    assert asked.prompt == "Look.\nWhich?\nA. one\nB. two\nC. three"
    assert asked.key.truth == "B"
    assert asked.images[0].open().convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_orders_of_one_question_count_together_and_share_its_image(put, read) -> None:
    _, dataset = read(put("m.tsv", table([*rotations(3), *rotations(4)])))
    assert [it.id for it in dataset.questions] == [
        "3", "1000003", "2000003", "4", "1000004", "2000004",
    ]  # fmt: skip
    assert [it.unit for it in dataset.questions] == ["3"] * 3 + ["4"] * 3
    assert [it.key.truth for it in dataset.questions] == ["B", "A", "C"] * 2
    assert len({it.images for it in dataset.questions}) == 2


def test_each_question_comes_once_when_it_is_not_circular(put, read) -> None:
    _, dataset = read(put("m.tsv", table([*rotations(3), *rotations(4)])), circular=False)
    assert [(it.id, it.unit) for it in dataset.questions] == [("3", "3"), ("4", "4")]


@pytest.mark.parametrize("nothing", ["", "nan", "None"])
def test_empty_cells_are_no_hint_and_no_option(put, read, nothing: str) -> None:
    cells = {"hint": nothing, "C": nothing, "D": nothing, "l2-category": nothing}
    _, dataset = read(put("m.tsv", table([row(3, **cells)])))
    assert dataset.questions[0].prompt == "Which?\nA. one\nB. two"
    assert dataset.questions[0].kind == "counting"


def test_predictions_can_be_submitted_when_the_answers_are_not_public(put, read) -> None:
    path = put("mmbench_test.tsv", table(rotations(3), without="answer"))
    found, dataset = read(path)
    assert {it.key.truth for it in dataset.questions} == {None}
    _, submit = found.submission
    text = submit(Document.read(path), {"3": "A", "1000003": "", "2000003": "C"})
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines[0] == ["index", "question", "A", "B", "C", "D", "prediction"]
    assert [line[-1] for line in lines[1:]] == ["A", "", "C"]
    assert lines[1][:3] == ["3", "Which?", "one"]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"index": "x"}, "'index' is 'x'"),
        ({"image": "77"}, "no image"),
        ({"B": ""}, "'B' is ''"),
        ({"answer": "D"}, "the answer is 'D', of 3 options"),
    ],
)
def test_row_is_refused_by_number_when_it_is_malformed(put, read, cells, said: str) -> None:
    with pytest.raises(InputError, match=f"record 2.*{said}"):
        read(put("m.tsv", table([row(3), row(4, **cells)])))


def test_image_is_refused_by_name_when_it_is_damaged(put, read) -> None:
    damaged = base64.b64encode(b"no image" * 20).decode()
    _, dataset = read(put("m.tsv", table([row(3, image=damaged)])))
    with pytest.raises(InputError, match=r"image m\.tsv:3 is damaged"):
        dataset.questions[0].images[0].open()
