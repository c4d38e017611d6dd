"""One process at a time in a directory: a lock file that may go away with what it guards."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


def holds(lock: IO[str], path: Path) -> bool:
    """Takes the lock, if nobody has it.

    Args:
        lock: The lock file, open.
        path: Where it was opened.

    Returns:
        Whether the lock is ours now, and still the one at `path`.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who held it until now may have removed it, or moved the directory around it.
        there = path.stat()
    except (BlockingIOError, FileNotFoundError):
        return False
    return os.path.samestat(there, os.fstat(lock.fileno()))
