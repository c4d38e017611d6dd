"""JSON files of a checkpoint directory, and telling a file from a git-LFS pointer to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atp_runtime.errors import InputError

FETCH_AGAIN = "copy or download the checkpoint again, and compare file sizes with the source"
"""The remedy for a damaged file, for error messages."""

_LFS_START = b"version https://git-lfs.github.com/spec/"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that must hold one object.

    Raises:
        InputError: The file cannot be read, is not JSON, or holds something else.
    """
    refuse_lfs_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read as JSON ({error})",
            why="the checkpoint is described there",
            fix=FETCH_AGAIN,
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{file} holds a JSON {type(content).__name__}, not an object",
            why="the checkpoint is described there by named fields",
            fix=FETCH_AGAIN,
        )
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def refuse_lfs_pointer(file: Path) -> None:
    """Tells a git-LFS pointer from the file it stands for.

    Raises:
        InputError: The file is a pointer, or cannot be opened.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_START))
    except OSError as error:
        raise InputError(
            f"{file} cannot be opened ({error.strerror})",
            why="the checkpoint needs it",
            fix="check that the file is there and readable",
        ) from error
    if start == _LFS_START:
        raise InputError(
            f"{file} is a git-LFS pointer, not the file itself",
            why="the repository was cloned without its large files",
            fix="run `git lfs install && git lfs pull` in the checkpoint directory",
        )
