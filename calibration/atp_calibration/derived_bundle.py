"""Makes a bundle out of another one: some files and some of the manifest are new.

Work happens in `OUT.partial`, locked, and resumes there; the last step renames the directory, so
a directory of the bundle's name is always a whole bundle. Files that stay the same are clones of
the source's where the file system has them (Btrfs, XFS), else copies. Hard links would take no
space anywhere, but ONNX's checker and onnx-ir refuse weights that have more than one name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from atp_runtime.bundle import Bundle
from atp_runtime.directory_lock import holds
from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import sha256
from atp_runtime.evaluation.json_files import read_declared, write_declared, write_whole
from atp_runtime.manifest import MANIFEST_NAME, Derivation, FileRecord, dump_manifest
from atp_runtime.schema import to_json

STATE_NAME = "derive-state.json"
LOCK_NAME = "derive.lock"
WORK_NAME = "work"
_FICLONE = 0x40049409  # linux/fs.h
_PACKAGES = ("atp-llava", "numpy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class _Written:
    """A finished file, and what it was made of."""

    record: FileRecord
    made_of: str


@dataclass(frozen=True)
class _State:
    request: str
    files: Mapping[str, _Written]


class DerivedBundle:
    """A bundle in the making; see `deriving`.

    Attributes:
        source: What it is made of.
        root: Where it is made.
        work: A directory for what an interrupted run goes on with; it goes away in the end.
        manifest: What its manifest will be, but for the records of files. Replace it with
            `update`.
        resumed: Files that a former run had written.
    """

    def __init__(self, source: Bundle, root: Path, derivation: Derivation) -> None:
        self.source = source
        self.root = root
        self.work = root / WORK_NAME
        self.work.mkdir(exist_ok=True)
        self.manifest = replace(
            source.manifest, derivations=(*source.manifest.derivations, derivation)
        )
        self._request = derivation.request
        self._files = _whole_files(root, derivation.request)
        self.resumed = tuple(self._files)

    @property
    def resumable(self) -> bool:
        """Whether there is anything that another run could go on with."""
        return bool(self._files) or any(self.work.iterdir())

    def update(self, **changes: Any) -> None:
        """Changes fields of the manifest."""
        self.manifest = replace(self.manifest, **changes)

    def replace_file(
        self, name: str, write: Callable[[Path], object], *, made_of: str = ""
    ) -> None:
        """Writes a file in place of the source's, or a new one, unless that was done before.

        Args:
            name: Relative to the bundle.
            write: Writes it to the path that it is given; the file gets its name when that is
                done.
            made_of: What decides its contents besides the request; a file that was made of
                something else is written again.
        """
        if name in self._files and self._files[name].made_of == made_of:
            return
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Runtimes look for weights beside the graph, so the temporary name is beside it, too.
        written = path.with_name(path.name + ".new")
        try:
            write(written)
            record = FileRecord(written.stat().st_size, sha256(written))
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)
            raise
        self._files[name] = _Written(record, made_of)
        write_declared(self.root / STATE_NAME, _State(self._request, self._files))

    def keep_file(self, name: str) -> None:
        """Puts a file of the source's where it will be, for those that are checked with it."""
        _copy(self.source.path(name), self.root / name)

    def add_report(self, name: str, text: str) -> None:
        """Writes a text file that no manifest lists, such as `calibration/report.md`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)

    def staged(self) -> Bundle:
        """The bundle as it is so far, whole enough to be run."""
        source = self.source
        written = {name: it.record for name, it in self._files.items()}
        files = {**source.manifest.files, **written}
        for name in files.keys() - written.keys():
            _copy(source.path(name), self.root / name)
        manifest = replace(self.manifest, files=files)
        write_whole(self.root / MANIFEST_NAME, dump_manifest(manifest))
        return Bundle(self.root, manifest)


@contextmanager
def deriving(
    source: Bundle, out: Path, command: str, request: Mapping[str, Any]
) -> Iterator[DerivedBundle]:
    """Makes a bundle; at the end of the block it is published, unless an error ends the block.

    What an interrupted run left is used if source and request are the same, and removed if not.

    Args:
        source: An opened bundle.
        out: The directory to make.
        command: The command line, for the provenance.
        request: All that decides what the bundle will be, as JSON values.

    Raises:
        InputError: `out` exists, or another process is making it.
    """
    out = out.resolve()
    _check_free(source, out)
    derivation = _derivation(source, command, request)
    root = out.with_name(out.name + ".partial")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{root}: no directory can be made here",
            why="a file of that name, or of a directory's above it, is in the way.",
            fix="choose another directory for the bundle.",
        ) from error
    with (root / LOCK_NAME).open("w") as lock:
        _take(lock, root / LOCK_NAME, out)
        _clear_unless_same(root, derivation.request)
        new = DerivedBundle(source, root, derivation)
        try:
            yield new
            new.staged()
            _publish(root, out)
        except BaseException as error:
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(root)  # a failed write does not say where
            if new.work.is_dir() and not new.resumable:
                shutil.rmtree(root, ignore_errors=True)
            else:
                # What is left is no bundle.
                (root / MANIFEST_NAME).unlink(missing_ok=True)
            raise


def _check_free(source: Bundle, out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if out == source.root:
        what, fix = "is the bundle to learn from", "name another directory."
    else:
        what, fix = "exists", "name a directory that does not exist yet, or remove that one."
    raise InputError(f"{out}: {what}", why="a calibration never overwrites what is there.", fix=fix)


def _derivation(source: Bundle, command: str, request: Mapping[str, Any]) -> Derivation:
    manifest = sha256(source.root / MANIFEST_NAME)
    packages = {name: metadata.version(name) for name in _PACKAGES}
    text = json.dumps([manifest, to_json(request), packages], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    return Derivation(command, manifest, key, packages)


def _take(lock: IO[str], path: Path, out: Path) -> None:
    if not holds(lock, path):
        raise InputError(
            f"{out}: another process is making this bundle",
            why="two writers would mix their files.",
            fix="wait for it to end, or choose another directory.",
        )


def _clear_unless_same(root: Path, request: str) -> None:
    """Removes what is left of another request, and notes ours."""
    state = _read_state(root)
    if state is not None and state.request == request:
        return
    for entry in root.iterdir():
        if entry.name != LOCK_NAME:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write_declared(root / STATE_NAME, _State(request, {}))


def _whole_files(root: Path, request: str) -> dict[str, _Written]:
    """The files of a former run that are as it wrote them."""
    state = _read_state(root)
    if state is None or state.request != request:
        return {}
    return {
        name: written
        for name, written in state.files.items()
        if _is_recorded(root / name, written.record)
    }


def _is_recorded(path: Path, record: FileRecord) -> bool:
    same_size = path.is_file() and path.stat().st_size == record.bytes
    return same_size and sha256(path) == record.sha256


def _read_state(root: Path) -> _State | None:
    try:
        return read_declared(_State, root / STATE_NAME, fix="remove it.")
    except InputError:
        # Missing, or of another version: there is nothing to resume from.
        return None


def _copy(source: Path, into: Path) -> None:
    if into.exists():
        return  # only whole files are ever there
    into.parent.mkdir(parents=True, exist_ok=True)
    copied = into.with_name(into.name + ".new")
    try:
        if not _cloned(source, copied):
            shutil.copyfile(source, copied)
        copied.replace(into)
    except BaseException:
        copied.unlink(missing_ok=True)
        raise


def _cloned(source: Path, into: Path) -> bool:
    """Whether the file system made a copy that shares the blocks."""
    with source.open("rb") as original, into.open("wb") as clone:
        try:
            fcntl.ioctl(clone.fileno(), _FICLONE, original.fileno())
        except OSError:
            return False
    return True


def _publish(root: Path, out: Path) -> None:
    shutil.rmtree(root / WORK_NAME)
    (root / STATE_NAME).unlink()
    if out.is_dir():
        out.rmdir()
    root.rename(out)
    (out / LOCK_NAME).unlink(missing_ok=True)
