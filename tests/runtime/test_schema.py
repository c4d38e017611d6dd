from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.errors import InputError
from atp_runtime.schema import from_json, to_json


@dataclass(frozen=True)
class Inner:
    name: str
    size: int


@dataclass(frozen=True)
class Outer:
    text: str
    count: int
    ratio: float
    flag: bool
    pair: tuple[int, int]
    many: tuple[Inner, ...]
    mixed: tuple[int | str, ...]
    named: Mapping[str, Inner]
    maybe: Inner | None = None
    anything: Any = None


@dataclass(frozen=True)
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value < 1:
            raise ValueError(f"{self.value} is not positive")


@dataclass(frozen=True)
class WithDefaults:
    given: int
    fixed: int = 3
    made: tuple[int, ...] = field(default_factory=lambda: (1, 2))


inners = st.builds(Inner, st.text(), st.integers())
outers = st.builds(
    Outer,
    text=st.text(),
    count=st.integers(),
    ratio=st.floats(allow_nan=False),
    flag=st.booleans(),
    pair=st.tuples(st.integers(), st.integers()),
    many=st.lists(inners).map(tuple),
    mixed=st.lists(st.integers() | st.text()).map(tuple),
    named=st.dictionaries(st.text(), inners),
    maybe=st.none() | inners,
    anything=st.none() | st.integers() | st.text() | st.lists(st.booleans()),
)


def read(cls: type[Any], value: Any) -> Any:
    return from_json(cls, value, source="a.json", fix="write it again.")


def whole() -> dict[str, Any]:
    return {
        "text": "t",
        "count": 1,
        "ratio": 0.5,
        "flag": True,
        "pair": [1, 2],
        "many": [{"name": "n", "size": 3}],
        "mixed": [1, "tokens"],
        "named": {"k": {"name": "n", "size": 4}},
    }


@given(outers)
def test_a_value_comes_back_the_same_after_a_round_trip_through_json_text(value: Outer) -> None:
    assert read(Outer, json.loads(json.dumps(to_json(value)))) == value


def test_to_json_makes_plain_values_of_tuples_and_dataclasses() -> None:
    value = {"a": (Inner("x", 1), 2), "b": [None]}
    assert to_json(value) == {"a": [{"name": "x", "size": 1}, 2], "b": [None]}


def test_fields_with_defaults_may_be_left_away() -> None:
    assert read(WithDefaults, {"given": 7}) == WithDefaults(7, 3, (1, 2))


@pytest.mark.parametrize("name", ["text", "pair", "many", "named"])
def test_a_missing_field_is_named(name: str) -> None:
    value = whole()
    del value[name]
    with pytest.raises(InputError, match=f"field '{name}' is missing"):
        read(Outer, value)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(InputError, match="unknown field 'colour'"):
        read(Outer, {**whole(), "colour": "red"})


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("text", 1, "text: expected str"),
        ("text", None, "text: expected str"),
        ("count", "1", "count: expected int"),
        ("count", 1.5, "count: expected int"),
        ("count", True, "count: expected int"),
        ("ratio", True, "ratio: expected float"),
        ("ratio", "0.5", "ratio: expected float"),
        ("flag", 1, "flag: expected bool"),
        ("pair", [1], "pair: expected a list of 2"),
        ("pair", [1, 2, 3], "pair: expected a list of 2"),
        ("pair", {"0": 1}, "pair: expected a list"),
        ("many", [{"name": "n", "size": "x"}], r"many\[0\]\.size: expected int"),
        ("many", [{"name": "n"}], r"many\[0\]: field 'size' is missing"),
        ("mixed", [1, 2.5], r"mixed\[1\]: expected"),
        ("named", [], "named: expected an object"),
        ("named", {"k": 5}, r"named\.k: expected an object"),
        ("maybe", 5, "maybe: expected an object"),
    ],
)
def test_a_value_of_another_type_is_named_by_its_path(name: str, value: Any, path: str) -> None:
    with pytest.raises(InputError, match=path):
        read(Outer, {**whole(), name: value})


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_something_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="top level: expected an object"):
        read(Outer, value)


def test_a_whole_number_is_a_float() -> None:
    read_back = read(Outer, {**whole(), "ratio": 2})
    assert isinstance(read_back.ratio, float)
    assert read_back.ratio == 2.0


def test_what_a_dataclass_refuses_is_refused() -> None:
    with pytest.raises(InputError, match="0 is not positive"):
        read(Positive, {"value": 0})


def test_the_message_names_source_declaration_and_remedy() -> None:
    with pytest.raises(InputError) as caught:
        read(Positive, {})
    error = caught.value
    assert error.what.startswith("a.json: ")
    assert "Positive" in error.why
    assert error.fix == "write it again."


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        read(Inner, {"name": list(range(1000)), "size": 1})
    assert len(caught.value.what) < 120


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_any_json_is_read_or_refused_but_never_crashes(value: Any) -> None:
    try:
        read_back = read(Outer, value)
    except InputError:
        return
    assert isinstance(read_back, Outer)


@given(st.sampled_from(sorted(whole())), json_values)
def test_any_field_is_read_or_refused_but_never_crashes(name: str, value: Any) -> None:
    try:
        read_back = read(Outer, {**whole(), name: value})
    except InputError:
        return
    assert isinstance(read_back, Outer)
