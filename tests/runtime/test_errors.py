from __future__ import annotations

import pytest

from atp_runtime.errors import AtpError, CheckFailedError, InputError, MachineError


@pytest.mark.parametrize(
    ("kind", "code"), [(CheckFailedError, 1), (InputError, 2), (MachineError, 3)]
)
def test_an_error_has_the_documented_exit_code(kind: type[AtpError], code: int) -> None:
    assert kind("what", why="why", fix="fix").exit_code == code


def test_an_error_shows_what_why_and_fix_on_lines_of_their_own() -> None:
    error = InputError("photo.png: no image", why="it is text.", fix="give a photo.")
    assert str(error) == "photo.png: no image\n  why: it is text.\n  fix: give a photo."


def test_the_parts_of_an_error_can_be_read_one_by_one() -> None:
    error = MachineError("no GPU", why="engines run there.", fix="use a machine with one.")
    assert (error.what, error.why, error.fix) == (
        "no GPU",
        "engines run there.",
        "use a machine with one.",
    )


@pytest.mark.parametrize("kind", [CheckFailedError, InputError, MachineError])
def test_every_kind_is_caught_as_the_family(kind: type[AtpError]) -> None:
    with pytest.raises(AtpError, match="what"):
        raise kind("what", why="why", fix="fix")


def test_an_error_cannot_be_made_without_why_and_fix() -> None:
    with pytest.raises(TypeError):
        InputError("what")  # type: ignore[call-arg]
