"""Files and directories that are slow to make, and are made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def made_once(target: Path, make: Callable[[Path], object]) -> Path:
    """Has `make` write a path, which becomes `target` when it is whole; nothing if it is there."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.unfinished")
    _remove(unfinished)
    try:
        make(unfinished)
        unfinished.rename(target)
    finally:
        _remove(unfinished)
    return target


def bytes_of(path: Path) -> int:
    """Of a file, or of all the files below a directory."""
    files = [path] if path.is_file() else [it for it in path.rglob("*") if it.is_file()]
    return sum(file.stat().st_size for file in files)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
