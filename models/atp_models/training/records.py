r"""Conversations about images, from files in LLaVA's format.

A file is a JSON list, or JSON Lines, of records like those of LLaVA's 665k mix:

    {"id": "7", "image": "coco/7.jpg", "kind": "colour", "conversations": [
        {"from": "human", "value": "<image>\nWhat colour is it?"},
        {"from": "gpt", "value": "Red"}]}

`image` may be a list or absent; `kind` is ours and optional, scores are told by kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_runtime.errors import InputError

PLACE = "<image>"
NO_KIND = "other"
_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_SHOWN = 5


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: "system", "user" or "assistant".
        text: Without the image placeholders and without space around it.
    """

    role: str
    text: str


@dataclass(frozen=True)
class Record:
    """One conversation.

    Attributes:
        name: Its id, or its number in the file.
        images: Files, shown before the text of the first question.
        turns: Questions and answers in turn, a system prompt before them if there is one; the
            last is an answer.
        key: What tells records about other images apart: the images' paths as the file has
            them, or the name where there is none.
        kind: Of question.
    """

    name: str
    images: tuple[Path, ...]
    turns: tuple[Turn, ...]
    key: str
    kind: str = NO_KIND

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = self.turns[0]
        return first.text if first.role == "system" else None


def read_records(file: Path, images: Path | None = None) -> list[Record]:
    """Reads and checks a whole file.

    Args:
        file: A JSON list or JSON Lines.
        images: The folder that image paths start from; the file's own if None.

    Raises:
        InputError: The file cannot be read or holds nothing, records are malformed, or image
            files are missing; the message counts them and shows the first.
    """
    values = _read_values(file)
    if not values:
        raise _unusable(file, "holds no record", "there is nothing to train on.")
    folder = file.parent if images is None else images
    records, problems = [], []
    for number, value in enumerate(values):
        try:
            records.append(_record(value, number, folder))
        except _MalformedError as error:
            problems.append(f"{_name(value, number)}: {error}")
    if problems:
        raise _unusable(
            file,
            f"has {len(problems)} of {len(values)} records that cannot be used:{_list(problems)}",
            "each must be a conversation of human and gpt, with a place <image> for each image.",
        )
    _check_files(file, folder, records)
    return records


class _MalformedError(ValueError):
    """A record is not what it must be."""


def _read_values(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read ({error})",
            why="the conversations to train on are there.",
            fix="check the path; it must be JSON or JSON Lines in UTF-8.",
        ) from error
    try:
        if not text.lstrip().startswith("["):
            return list(_json_lines(text))
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unusable(file, f"is no JSON ({error})", "no record can be read.") from error
    return values if isinstance(values, list) else [values]


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _record(value: Any, number: int, folder: Path) -> Record:
    if not isinstance(value, dict):
        raise _MalformedError("it is no JSON object")
    said = value.get("conversations")
    if not isinstance(said, list) or not said:
        raise _MalformedError("it has no conversations")
    turns = [_turn(item) for item in said]
    _check_roles(turns)
    names = _image_names(value.get("image"))
    _check_places(turns, len(names))
    kind = value.get("kind", NO_KIND)
    if not isinstance(kind, str) or not kind:
        raise _MalformedError(f"its kind {kind!r} is no text")
    last = max(place for place, turn in enumerate(turns) if turn.role == "assistant")
    told = tuple(Turn(turn.role, turn.text.replace(PLACE, "").strip()) for turn in turns)
    if not all(turn.text for turn in told if turn.role == "assistant"):
        raise _MalformedError("an answer is empty")
    images, name = tuple(folder / it for it in names), _name(value, number)
    return Record(name, images, told[: last + 1], "\n".join(names) or name, kind)


def _turn(item: Any) -> Turn:
    if not isinstance(item, dict) or not isinstance(item.get("value"), str):
        raise _MalformedError("a turn has no text as its value")
    if item.get("from") not in _ROLES:
        raise _MalformedError(f"a turn is from {item.get('from')!r}, not from human or gpt")
    return Turn(_ROLES[item["from"]], item["value"])


def _check_roles(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(spoken)):
        raise _MalformedError("human and gpt do not take turns, beginning with human")
    if len(spoken) < 2:
        raise _MalformedError("it has no answer")


def _image_names(value: Any) -> list[str]:
    names = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise _MalformedError(f"its image {value!r} is no path or list of paths")
    return names


def _check_places(turns: Sequence[Turn], images: int) -> None:
    counts = [turn.text.count(PLACE) for turn in turns]
    first = next(place for place, turn in enumerate(turns) if turn.role == "user")
    if sum(counts) != images:
        raise _MalformedError(f"it has {sum(counts)} places <image> for {images} images")
    if counts[first] != images:
        # At inference each turn prunes its own images, for its own question.
        raise _MalformedError("it has <image> elsewhere than in the first question")


def _check_files(file: Path, folder: Path, records: Sequence[Record]) -> None:
    wanted = dict.fromkeys(image for record in records for image in record.images)
    missing = [str(image.relative_to(folder)) for image in wanted if not image.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(wanted)} images of {file} are not in {folder}:"
            f"{_list(missing)}",
            why="the conversations are about them.",
            fix="name the folder that the records' paths start from with --images.",
        )


def _name(value: Any, number: int) -> str:
    given = value.get("id") if isinstance(value, dict) else None
    return str(given) if isinstance(given, str | int) else f"record {number}"


def _list(lines: Sequence[str]) -> str:
    more = len(lines) - _SHOWN
    shown = "".join(f"\n    {line}" for line in lines[:_SHOWN])
    return shown + (f"\n    and {more} more" if more > 0 else "")


def _unusable(file: Path, what: str, why: str) -> InputError:
    return InputError(f"{file} {what}", why=why, fix="correct the file; see docs/training.md.")
