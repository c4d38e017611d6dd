"""What a file that the user named holds, as one number."""

from __future__ import annotations

import hashlib
from pathlib import Path

from atp_runtime.errors import InputError


def hash_of(path: Path, *, why: str, fix: str) -> str:
    """SHA-256 of a small file, in hex.

    Raises:
        InputError: It cannot be read; it says `why` and `fix`.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", why=why, fix=fix) from error
