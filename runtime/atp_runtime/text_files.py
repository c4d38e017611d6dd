"""Reads the small text files a checkpoint keeps beside its weights.

They come from strangers: whatever is missing, unreadable or of another form than expected ends
in an `InputError` naming the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atp_runtime.errors import InputError

_COPY_AGAIN = "copy the checkpoint's text files again, or export the bundle again"


def read_text(path: Path) -> str:
    """The UTF-8 text of a file.

    Raises:
        InputError: The file is missing, cannot be read or is not UTF-8.
    """
    text = read_text_if_present(path)
    if text is None:
        raise InputError(
            f"{path} does not exist",
            why="the model cannot be spoken to without it",
            fix=_COPY_AGAIN,
        )
    return text


def read_text_if_present(path: Path) -> str | None:
    """As `read_text`, with None for a file that does not exist."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}",
            why="it is there, so it may hold what the model needs",
            fix=_COPY_AGAIN,
        ) from error


def read_json_if_present(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty for a file that does not exist.

    Raises:
        InputError: The file cannot be read or holds no JSON object.
    """
    text = read_text_if_present(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid JSON: {error}",
            why="a file that was cut short or edited by hand cannot be trusted in part",
            fix=_COPY_AGAIN,
        ) from error
    if not isinstance(value, dict):
        raise wrong_form(path, f"holds a {type(value).__name__} where a JSON object belongs")
    return value


def wrong_form(path: Path, what: str) -> InputError:
    """The error for a file that was read but does not say what it should."""
    return InputError(
        f"{path} {what}",
        why="it was not written by the library the checkpoint comes from, or it was damaged",
        fix=_COPY_AGAIN,
    )
