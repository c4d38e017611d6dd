"""Disk space: asked for before long work, and missed with a clear message after it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from atp_runtime.errors import MachineError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def require_space(directory: Path, needed: int) -> None:
    """Refuse to begin if the disk of `directory` has fewer than `needed` bytes left.

    Raises:
        MachineError: There is too little space.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise MachineError(
            f"the disk of {directory} has {free / 1e6:.0f} MB left, "
            f"and {needed / 1e6:.0f} MB are needed",
            why="the files would not fit",
            fix="free some space, or name a directory on another disk",
        )


@contextmanager
def disk_failures_explained(directory: Path) -> Iterator[None]:
    """Turn a failed write under `directory` into a `MachineError`.

    Raises:
        MachineError: The body failed for want of space, permission, or a working disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in _FULL or "No space left" in str(error)
        raise MachineError(
            f"{directory} cannot be written: {error}",
            why="the disk is full" if full else "the files of the checkpoint have to go there",
            fix="free some space, or name a directory on another disk"
            if full
            else "check the permissions, or name another directory",
        ) from error
