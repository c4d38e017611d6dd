"""Directories that appear whole or not at all, and replace only what was made the same way."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from atp_runtime.errors import InputError


def refuse_foreign(place: Path, ours: Collection[str]) -> None:
    """Refuse to replace a directory that holds more than an earlier run put there.

    Args:
        place: The directory, which need not exist.
        ours: Names in it that may be replaced.

    Raises:
        InputError: `place` is a file, or holds something else.
    """
    if not place.exists():
        return
    if not place.is_dir():
        raise InputError(
            f"{place} is not a directory",
            why="several files are to be written there",
            fix="name a directory that does not exist yet",
        )
    foreign = sorted(path.name for path in place.iterdir() if path.name not in ours)
    if foreign:
        raise InputError(
            f"{place} holds files that no build of the demo put there: {', '.join(foreign[:5])}",
            why="building would replace the whole directory and lose them",
            fix="name another directory, or move those files away",
        )


@contextmanager
def staging(place: Path) -> Iterator[Path]:
    """An empty sibling of `place`, removed afterwards if it is still there."""
    # Not a temporary directory of the standard library: those are closed to other users,
    # and this one becomes `place`.
    directory = _sibling(place, "building")
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def put_in_place(directory: Path, place: Path) -> None:
    """Rename `directory` to `place`, moving an outdated one out of the way first."""
    if not place.exists():
        directory.rename(place)
        return
    retired = _sibling(place, "retired")
    place.rename(retired)
    directory.rename(place)
    shutil.rmtree(retired)


def _sibling(place: Path, purpose: str) -> Path:
    """A hidden path beside `place`, on the same disk, that nobody uses."""
    return place.with_name(f".{place.name}.{purpose}-{secrets.token_hex(4)}")
