"""Whether a file is still the one that was recorded, without hashing big ones every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from atp_runtime import stamps
from atp_runtime.manifest import FileRecord

_STAMPED_FROM = 32 << 20  # bytes; below, hashing takes a few hundredths of a second
_BLOCK = 1 << 20


def sha256_of(
    file: Path,
    record: FileRecord,
    *,
    again: bool = False,
    report: Callable[[int], None] | None = None,
) -> str:
    """The SHA-256 of a file, in hex.

    A big one that was found to be as recorded, on this machine, is not read as long as it has
    not changed since.

    Args:
        file: Resolved; of the recorded size.
        record: What it is said to be.
        again: Reads it in any case.
        report: Called after each block with the bytes read so far.

    Raises:
        OSError: It cannot be read.
    """
    big = record.bytes >= _STAMPED_FROM
    if big and not again and stamps.is_stamped(file, record.sha256):
        return record.sha256
    status = file.stat()
    found = _sha256(file, report)
    if big and found == record.sha256:
        stamps.stamp(file, found, status)
    return found


def _sha256(file: Path, report: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    done = 0
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(block):
            digest.update(block[:count])
            done += count
            if report:
                report(done)
    return digest.hexdigest()
