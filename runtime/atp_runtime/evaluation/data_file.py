"""Reads the files of benchmarks: JSON, JSON lines and tab-separated tables, and their records.

They come from strangers, so whatever is not as expected ends in an `InputError` that names file,
record and field.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_runtime.errors import InputError

_BLOCK = 1 << 20
_FIX = "download the file again, or name its format with --format."


@dataclass(frozen=True)
class Document:
    """A file and what it holds, or a directory of files.

    Attributes:
        path: The file or directory.
        value: The JSON value; of JSON lines and tables a list of their objects or rows; None of
            a directory.
    """

    path: Path
    value: Any

    @classmethod
    def read(cls, path: Path) -> Document:
        """Reads a file, or notes a directory.

        The suffix .tsv makes it a table, .jsonl JSON lines, any other either JSON or JSON lines.

        Raises:
            InputError: It is not there, cannot be read, or is none of these.
        """
        if path.is_dir():
            return cls(path, None)
        try:
            if path.suffix.lower() == ".tsv":
                return cls(path, _rows(path))
            return cls(path, _json(path.read_text(encoding="utf-8-sig"), path.suffix.lower()))
        except FileNotFoundError as error:
            raise InputError(
                f"{path} does not exist",
                why="the questions are read from it.",
                fix="check the path.",
            ) from error
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            raise InputError(
                f"{path} cannot be read: {error}", why="the questions are read from it.", fix=_FIX
            ) from error

    def records(self, value: Any = None) -> list[Record]:
        """The objects of a list, the whole value unless another is given.

        Raises:
            InputError: It is no list of objects, or it is empty.
        """
        found = self.value if value is None else value
        if not isinstance(found, list) or not found:
            raise InputError(
                f"{self.path}: no list of questions",
                why="the file is empty or of another format.",
                fix=_FIX,
            )
        return [
            Record(_checked(f"{self.path}, record {number + 1}", item), item)
            for number, item in enumerate(found)
        ]


@dataclass(frozen=True)
class Record:
    """One object of a file.

    Attributes:
        name: Which, for messages.
        fields: What it holds.
    """

    name: str
    fields: Mapping[str, Any]

    def text(self, field: str) -> str:
        """A field that must be text; numbers count as their digits.

        Raises:
            InputError: It is missing, empty or something else.
        """
        found = self.optional_text(field)
        if found is None:
            raise self.wrong(field, "some text")
        return found

    def optional_text(self, field: str) -> str | None:
        """The same, with None for a field that is missing, null or empty.

        Raises:
            InputError: It is something else.
        """
        value = self.fields.get(field)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.wrong(field, "text")
        return str(value)

    def texts(self, field: str) -> tuple[str, ...]:
        """A field that must be a list of texts.

        Raises:
            InputError: It is missing or something else.
        """
        value = self.fields.get(field)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(field, "a list of texts")
        return tuple(value)

    def whole(self, field: str) -> int:
        """A field that must be a whole number.

        Raises:
            InputError: It is missing or something else.
        """
        value = self.fields.get(field)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(field, "a whole number")
        return value

    def parts(self, field: str) -> list[Record]:
        """A field that must be a list of objects, not empty.

        Raises:
            InputError: It is missing or something else.
        """
        value = self.fields.get(field)
        if not isinstance(value, list) or not value:
            raise self.wrong(field, "a list of objects")
        return [
            Record(_checked(f"{self.name}, {field} {number + 1}", item), item)
            for number, item in enumerate(value)
        ]

    def wrong(self, field: str, expected: str) -> InputError:
        """The error for a field that is not what it must be."""
        shown = repr(self.fields[field])[:60] if field in self.fields else "nothing"
        return InputError(
            f"{self.name}: {field!r} is {shown}", why=f"it must be {expected}.", fix=_FIX
        )


def sha256(path: Path) -> str:
    """A file's hash, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def has_fields(value: Any, fields: Sequence[str]) -> bool:
    """Whether a JSON value is an object with all these fields."""
    return isinstance(value, dict) and all(field in value for field in fields)


def first(value: Any) -> Any:
    """The first item of a list, the first value of an object; None of anything else."""
    items = value.values() if isinstance(value, dict) else value
    return next(iter(items), None) if isinstance(value, (dict, list)) else None


def _checked(name: str, item: Any) -> str:
    if not isinstance(item, dict):
        raise InputError(f"{name} is no object", why="a question has named fields.", fix=_FIX)
    return name


def _json(text: str, suffix: str) -> Any:
    if suffix == ".jsonl":
        return _json_lines(text)
    try:
        return json.loads(text)
    except ValueError:
        # Benchmarks call JSON lines .json, too.
        if not text.partition("\n")[0].rstrip().endswith("}"):
            raise
        return _json_lines(text)


def _json_lines(text: str) -> list[Any]:
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            values += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return values


def _rows(path: Path) -> list[dict[str, str]]:
    # A field holds a whole image; the limit is a C long, 32 bits on some systems.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened, delimiter="\t"))
