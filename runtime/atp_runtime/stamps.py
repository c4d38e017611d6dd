"""Remembers which big files were hashed, so that opening a bundle again takes no seconds.

One small file per hashed file, in the user's cache directory, says what was found when. It
holds for exactly that file: any change of inode, size, modification or status time makes it
void. Whoever can write to the cache directory can forge it, and could as well replace this
program. Where there is no such directory or it cannot be written, nothing is remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

_FOLDER = Path("atp-llava", "verified")


def is_stamped(file: Path, sha256: str) -> bool:
    """Whether this very file, unchanged since, was found to have that hash."""
    stamp = _stamp_path(file)
    if stamp is None:
        return False
    try:
        return stamp.read_text(encoding="utf-8") == _content(file, sha256)
    except (OSError, UnicodeDecodeError):
        return False


def stamp(file: Path, sha256: str, status: os.stat_result) -> None:
    """Remembers that a file has that hash.

    Args:
        file: Resolved.
        sha256: In hex.
        status: Of the file, taken before it was read, so that a change meanwhile voids it.
    """
    path = _stamp_path(file)
    if path is None:
        return
    # A cache that cannot be written costs the next opening some time and nothing else.
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as written:
                written.write(_content(file, sha256, status))
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _stamp_path(file: Path) -> Path | None:
    root = os.environ.get("XDG_CACHE_HOME")
    # The base directory specification has relative values ignored.
    if root is None or not Path(root).is_absolute():
        try:
            root = str(Path.home() / ".cache")
        except RuntimeError:
            return None
    name = hashlib.sha256(os.fsencode(file)).hexdigest()
    return Path(root, _FOLDER, f"{name}.json")


def _content(file: Path, sha256: str, status: os.stat_result | None = None) -> str:
    found = status or file.stat()
    # The status time cannot be set back by a program that restores the modification time.
    times = found.st_mtime_ns, found.st_ctime_ns
    return json.dumps([str(file), found.st_dev, found.st_ino, found.st_size, *times, sha256])
