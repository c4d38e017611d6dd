"""Opens a bundle directory: reads its manifest and checks its files before anyone uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from atp_runtime.errors import CheckFailedError, InputError, MachineError
from atp_runtime.manifest import FileRecord, Manifest, read_manifest
from atp_runtime.recorded_files import sha256_of

Progress = Callable[[str, int, int], None]
"""Told the file being hashed, the bytes hashed so far and the bytes there are in all."""

_COPY_AGAIN = "copy the bundle again, or export it again with atp-export."


@dataclass(frozen=True)
class Bundle:
    """A bundle directory whose files are those its manifest lists.

    Attributes:
        root: Resolved.
        manifest: What `manifest.json` says.
    """

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, *, verify: Literal["once", "full"] = "once") -> Bundle:
        """Opens a bundle and checks every file of its manifest.

        Args:
            path: The directory.
            verify: "full" hashes every file; "once" does not hash a big file again that was
                hashed before on this machine and has not changed since.

        Raises:
            InputError: It is no directory, the manifest is malformed (see `read_manifest`), or
                a file is missing, too short or outside of the bundle.
            CheckFailedError: A file is not the one that was exported.
            MachineError: A file cannot be read.
        """
        if not path.is_dir():
            raise InputError(
                f"{path}: no such directory",
                why="a bundle is the directory that atp-export wrote.",
                fix="check the path.",
            )
        bundle = cls(path.resolve(), read_manifest(path))
        for name, record in bundle.manifest.files.items():
            file = _checked_size(bundle, name, record)
            _check_hash(file, name, record, again=verify == "full")
        return bundle

    def in_dialect(self, name: str) -> Bundle:
        """The bundle as it is seen in one of its dialects: each stage's `graph` is written in it.

        Raises:
            InputError: It has no graphs in that dialect.
        """
        return replace(self, manifest=self.manifest.in_dialect(name))

    def path(self, relative: str) -> Path:
        """The resolved path of a file of the bundle.

        Args:
            relative: As the manifest names it.

        Raises:
            InputError: It lies outside of the bundle, perhaps by a symbolic link.
        """
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root):
            raise InputError(
                f"{self.root}: {relative!r} leads to {path}",
                why="a bundle may only use files inside of it.",
                fix="replace the link by a copy of the file, if you trust the bundle.",
            )
        return path


def verify_files(bundle: Bundle, report: Progress) -> None:
    """Hashes every file of the manifest, whatever was verified before.

    Args:
        bundle: An open one.
        report: Called after each block.

    Raises:
        InputError: A file is missing, too short or outside of the bundle.
        CheckFailedError: A file is not the one that was exported.
        MachineError: A file cannot be read.
    """
    files = bundle.manifest.files
    total = sum(record.bytes for record in files.values())
    before = 0
    for name, record in files.items():
        file = _checked_size(bundle, name, record)

        def in_all(done: int, name: str = name, before: int = before) -> None:
            report(name, before + done, total)

        _check_hash(file, name, record, again=True, report=in_all)
        before += record.bytes


def _checked_size(bundle: Bundle, name: str, record: FileRecord) -> Path:
    path = bundle.path(name)
    if not path.is_file():
        raise InputError(
            f"{bundle.root}: {name} is missing",
            why="the manifest lists it, so the bundle is incomplete.",
            fix=_COPY_AGAIN,
        )
    size = path.stat().st_size
    if size < record.bytes:
        raise InputError(
            f"{path}: {size} bytes",
            why=f"it had {record.bytes} when it was exported; the copy was cut short.",
            fix=_COPY_AGAIN,
        )
    if size > record.bytes:
        raise _changed(path, f"{size} bytes instead of {record.bytes}")
    return path


def _check_hash(
    file: Path,
    name: str,
    record: FileRecord,
    *,
    again: bool,
    report: Callable[[int], None] | None = None,
) -> None:
    try:
        found = sha256_of(file, record, again=again, report=report)
    except OSError as error:
        raise MachineError(
            f"{file}: {error.strerror or error}",
            why=f"{name} of the bundle cannot be read.",
            fix="check the permissions and the disk.",
        ) from error
    if found != record.sha256:
        raise _changed(file, f"SHA-256 {found[:12]}... instead of {record.sha256[:12]}...")


def _changed(file: Path, difference: str) -> CheckFailedError:
    return CheckFailedError(
        f"{file}: {difference}",
        why="it is not the file that was exported: damaged, or changed by someone.",
        fix=f"do not use this bundle; {_COPY_AGAIN}",
    )
