import json
from pathlib import Path

import pytest

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document, Record, first, has_fields


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_json_is_read_even_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", "\ufeff" + json.dumps({"a": [1]}))
    assert Document.read(path).value == {"a": [1]}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_lines_are_a_list_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, '{"a": 1}\n\n{"a": "x\u2028y"}\n')
    assert Document.read(path).value == [{"a": 1}, {"a": "x\u2028y"}]


def test_single_line_is_a_list_when_the_file_is_called_jsonl(tmp_path: Path) -> None:
    assert Document.read(written(tmp_path / "a.jsonl", '{"a": 1}')).value == [{"a": 1}]


def test_table_is_a_list_of_rows_with_cells_of_any_length(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = written(tmp_path / "a.tsv", f'index\timage\n1\t{long}\n2\t"two\nlines"\n')
    rows = Document.read(path).value
    assert rows == [{"index": "1", "image": long}, {"index": "2", "image": "two\nlines"}]


def test_directory_has_no_value(tmp_path: Path) -> None:
    assert Document.read(tmp_path).value is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "", "cannot be read"),
        ("a.json", "[1,", "cannot be read"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2"),
        ("a.json", '{"a": 1}\n{"a": \n', "line 2"),
    ],
)
def test_file_is_refused_with_its_name_when_it_is_damaged(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as raised:
        Document.read(written(tmp_path / name, text))
    assert name in str(raised.value)


def test_file_is_refused_when_there_is_none_or_it_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Document.read(tmp_path / "missing.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        Document.read(tmp_path / "a.json")


@pytest.mark.parametrize("value", [{}, [], 3, None])
def test_document_is_refused_when_it_is_no_list_of_objects(value: object) -> None:
    with pytest.raises(InputError, match="no list of questions"):
        Document(Path("a.json"), value).records()


def test_record_is_named_when_it_is_no_object() -> None:
    with pytest.raises(InputError, match=r"a\.json, record 2 is no object"):
        Document(Path("a.json"), [{}, 3]).records()


def test_fields_are_taken_when_they_are_as_expected() -> None:
    record = Record("r", {"a": "x", "n": 7, "e": "", "t": ["x", "y"], "p": [{"a": "z"}]})
    assert (record.text("a"), record.text("n"), record.whole("n")) == ("x", "7", 7)
    assert (record.optional_text("e"), record.optional_text("missing")) == (None, None)
    assert record.texts("t") == ("x", "y")
    assert [part.text("a") for part in record.parts("p")] == ["z"]


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("text", None),
        ("text", ""),
        ("text", True),
        ("text", ["x"]),
        ("whole", "7"),
        ("whole", True),
        ("whole", 7.0),
        ("texts", "x"),
        ("texts", [1]),
        ("parts", []),
        ("parts", "x"),
    ],
)
def test_field_is_refused_with_record_and_name_when_it_is_not(method: str, value: object) -> None:
    with pytest.raises(InputError, match=r"record 3: 'f' is "):
        getattr(Record("record 3", {"f": value}), method)("f")
    with pytest.raises(InputError, match=r"record 3: 'f' is nothing"):
        getattr(Record("record 3", {}), method)("f")


def test_first_looks_into_lists_and_objects_only() -> None:
    assert (first([1, 2]), first({"a": 3}), first([]), first("abc")) == (1, 3, None, None)
    assert has_fields({"a": 1, "b": 2}, ["a", "b"])
    assert not has_fields({"a": 1}, ["a", "b"])
    assert not has_fields([], [])
