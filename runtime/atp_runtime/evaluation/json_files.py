"""Writes and reads the JSON files of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from atp_runtime.errors import InputError
from atp_runtime.schema import from_json, to_json

T = TypeVar("T")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is either there as a whole or not at all."""
    written = path.with_name(path.name + ".part")
    try:
        written.write_text(text, encoding="utf-8")
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def write_declared(path: Path, value: Any) -> None:
    """Writes a dataclass as JSON."""
    write_whole(path, json.dumps(to_json(value), indent=2, ensure_ascii=False) + "\n")


def read_declared(cls: type[T], path: Path, *, fix: str) -> T:
    """Reads such a file.

    Raises:
        InputError: It is not there, damaged, or does not fit the dataclass.
    """
    return parse_declared(cls, _text(path, fix), source=str(path), fix=fix)


def read_lines(cls: type[T], path: Path, *, fix: str) -> list[T]:
    """Reads a file that has such a value in each line, maybe none.

    Raises:
        InputError: As `read_declared`.
    """
    return [
        parse_declared(cls, line, source=f"{path}, line {number}", fix=fix)
        for number, line in enumerate(_text(path, fix).split("\n"), 1)
        if line
    ]


def parse_declared(cls: type[T], text: str, *, source: str, fix: str) -> T:
    """Reads a dataclass from JSON text.

    Raises:
        InputError: It does not fit.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: {error}", why="it is not JSON.", fix=fix) from error
    return from_json(cls, value, source=source, fix=fix)


def _text(path: Path, fix: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}", why="it cannot be read.", fix=fix) from error
