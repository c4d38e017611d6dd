from dataclasses import replace

import pytest

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document
from atp_runtime.evaluation.formats.format import ReadOptions
from atp_runtime.evaluation.formats.registry import FORMATS, find_format, read_dataset

LLAVA = [{"id": "x", "conversations": [{"from": "human", "value": "Q?"}]}]


@pytest.mark.parametrize(
    "value", [[], {}, [{"a": 1}], {"questions": []}, {"questions": [{"question": "?"}]}, 3, "x"]
)
def test_file_is_refused_when_no_format_has_such_fields(put, value: object) -> None:
    with pytest.raises(InputError, match="of no known format"):
        find_format(Document(put("d.json", []), value), None)


def test_file_is_refused_when_it_is_not_of_the_format_that_was_named(put) -> None:
    document = Document.read(put("d.json", LLAVA))
    assert find_format(document, "llava") is FORMATS["llava"]
    with pytest.raises(InputError, match="not of the format pope"):
        find_format(document, "pope")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"split": "val"}, "--split with LLaVA"),
        ({"circular": False}, "--no-circular with LLaVA"),
        ({"annotations": "a.json"}, "--annotations with LLaVA"),
    ],
)
def test_option_is_refused_when_it_means_nothing_for_the_format(put, option, said: str) -> None:
    document = Document.read(put("d.json", LLAVA))
    with pytest.raises(InputError, match=said):
        read_dataset(document, FORMATS["llava"], replace(ReadOptions(), **option))


def test_data_is_refused_when_two_questions_have_one_id(put) -> None:
    record = {"question_id": 1, "image": "a.jpg", "text": "?", "label": "yes"}
    document = Document(put("coco_pope_random.json", ""), [record, record])
    with pytest.raises(InputError, match="2 questions have the id 'random/1'"):
        read_dataset(document, FORMATS["pope"], ReadOptions())
