"""What a test of `atp-export` sees of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Output:
    """What a command wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


Run = Callable[..., Output]
"""Takes the words of a command line."""


def assert_refused(output: Output, code: int, *parts: str) -> None:
    """It says what, why and what to do, on standard error only, with these parts somewhere."""
    assert output.code == code
    assert output.out == ""
    what, why, fix = output.err.rstrip().split("\n")
    assert what.startswith("atp-export: ")
    assert why.startswith("  why: ")
    assert fix.startswith("  fix: ")
    for part in parts:
        assert part in output.err


def finished_steps(partial: Path) -> set[str]:
    """The steps that an unfinished export need not do again."""
    try:
        return set(json.loads((partial / "export-state.json").read_text())["steps"])
    except FileNotFoundError:
        return set()
