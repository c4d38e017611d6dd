import pytest
from hypothesis import given
from hypothesis import strategies as st

from atp_runtime.errors import InputError
from atp_runtime.stopping import StopStrings

TEXT = st.text("ab\n", max_size=30)
STRINGS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def until_first_complete_stop_string(text: str, strings: list[str]) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        ending_here = [it for it in strings if text[:end].endswith(it)]
        if ending_here:
            return text[: end - max(map(len, ending_here))], True
    return text, False


@given(st.lists(TEXT, max_size=12), STRINGS)
def test_shown_text_is_what_precedes_the_first_complete_stop_string_for_every_chunking(
    pieces: list[str], strings: list[str]
) -> None:
    stop = StopStrings(strings)
    shown = "".join([stop.push(piece) for piece in pieces]) + stop.flush()
    assert (shown, stop.stopped) == until_first_complete_stop_string("".join(pieces), strings)


@given(TEXT, STRINGS)
def test_text_is_held_back_only_while_a_stop_string_could_begin_with_it(
    text: str, strings: list[str]
) -> None:
    stop = StopStrings(strings)
    shown = stop.push(text)
    held = text[len(shown) :]
    if not stop.stopped:
        assert text.startswith(shown)
        assert held == "" or any(it.startswith(held) and it != held for it in strings)


def test_answer_stops_at_once_when_the_stop_string_is_complete() -> None:
    stop = StopStrings(["USER:"])
    assert [stop.push(piece) for piece in ["A cat. ", "US", "ER", ": and"]] == [
        "A cat. ",
        "",
        "",
        "",
    ]
    assert stop.stopped
    assert stop.push("more") == ""
    assert stop.flush() == ""


def test_held_text_is_shown_when_it_turns_out_not_to_be_a_stop_string() -> None:
    stop = StopStrings(["USER:"])
    assert [stop.push("US"), stop.push("A")] == ["", "USA"]


def test_half_a_stop_string_is_shown_when_the_answer_ends_there() -> None:
    stop = StopStrings(["</s>"])
    assert [stop.push("fin</"), stop.flush(), stop.flush()] == ["fin", "</", ""]


def test_text_passes_unchanged_when_there_are_no_stop_strings() -> None:
    assert StopStrings([]).push("anything") == "anything"


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        StopStrings(["ok", ""])
