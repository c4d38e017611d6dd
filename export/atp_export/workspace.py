"""The directory an export works in until the bundle is whole.

Work happens in `BUNDLE.partial`; a finished step is recorded there, so that an interrupted
export resumes behind it. The last step renames the directory, so a directory of the bundle's
name is always a whole bundle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from atp_runtime.directory_lock import holds
from atp_runtime.errors import InputError, MachineError
from atp_runtime.manifest import FileRecord, Stage
from atp_runtime.schema import from_json, to_json

STATE_NAME = "export-state.json"
LOCK_NAME = "export.lock"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FinishedStep:
    """A part of the bundle that is on disk: its stage, if it is one, and its files."""

    stage: Stage | None
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class _State:
    key: str
    steps: dict[str, FinishedStep]


class Workspace:
    """`BUNDLE.partial`, held by one process at a time.

    Attributes:
        bundle: What it becomes.
        root: Where it is.
        key: Of what is exported, see `work_key`.
        steps: What is finished, by name, in the order it was.
        resumed: Which of these a former export had finished.
    """

    def __init__(self, bundle: Path, key: str) -> None:
        # Resolved, so that "." and links have a name and a parent.
        self.bundle = bundle.resolve()
        self.root = self.bundle.with_name(self.bundle.name + ".partial")
        self.key = key
        self.steps: dict[str, FinishedStep] = {}
        self.resumed: tuple[str, ...] = ()

    @contextmanager
    def open(self) -> Iterator[Workspace]:
        """Makes or resumes the directory.

        What a former export left is kept if it was made from the same checkpoint with the same
        options and still has the recorded hashes, and removed otherwise. Where an export fails
        before its first step is finished, nothing is left.

        Raises:
            InputError: Another export is writing the same bundle, or a file is in the way.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{self.root}: no directory can be made here",
                why="a file of that name, or of a directory's above it, is in the way.",
                fix="choose another directory for the bundle.",
            ) from error
        with (self.root / LOCK_NAME).open("w") as lock:
            self._take(lock)
            try:
                self._resume()
                yield self
            except BaseException as error:
                if isinstance(error, OSError) and error.filename is None:
                    # A failed write does not say where, and here is where an export writes.
                    error.filename = str(self.root)
                if not (self.root / STATE_NAME).exists():
                    shutil.rmtree(self.root, ignore_errors=True)
                raise

    def _take(self, lock: IO[str]) -> None:
        if not holds(lock, self.root / LOCK_NAME):
            raise InputError(
                f"{self.bundle}: another export is writing this bundle",
                why="two writers would mix their files.",
                fix="wait for it to end, or choose another directory.",
            )

    def _resume(self) -> None:
        state = _read_state(self.root / STATE_NAME)
        if state is not None and state.key == self.key:
            self.steps = {name: s for name, s in state.steps.items() if self._is_whole(s)}
            self.resumed = tuple(self.steps)
            return
        for entry in self.root.iterdir():
            if entry.name == LOCK_NAME:
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _is_whole(self, step: FinishedStep) -> bool:
        paths = [(self.root / name, record) for name, record in step.files.items()]
        return all(path.is_file() and record_file(path) == record for path, record in paths)

    def finish(self, name: str, step: FinishedStep) -> None:
        """Records a step whose files are completely written."""
        self.steps[name] = step
        state = _State(self.key, self.steps)
        write_atomically(self.root / STATE_NAME, json.dumps(to_json(state), indent=1))

    def publish(self) -> None:
        """Makes the finished directory the bundle."""
        self.root.rename(self.bundle)
        for name in (STATE_NAME, LOCK_NAME):
            (self.bundle / name).unlink(missing_ok=True)


def _read_state(path: Path) -> _State | None:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        return from_json(_State, value, source=str(path), fix="remove it.")
    except (OSError, ValueError, InputError):
        # Missing, or of another version: there is nothing to resume from.
        return None


def work_key(*parts: Any) -> str:
    """A hash of everything that decides an export's result."""
    text = json.dumps(to_json(parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that readers see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def record_file(path: Path) -> FileRecord:
    """Size and hash of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileRecord(size, digest.hexdigest())


def check_space(directory: Path, needed: int) -> None:
    """Refuses to begin what cannot end.

    Args:
        directory: An existing one.
        needed: Bytes still to be written there.

    Raises:
        MachineError: The file system has less than `needed` bytes free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise MachineError(
            f"{directory}: {free / 1e6:,.1f} MB free",
            why=f"the export has {needed / 1e6:,.1f} MB to write there.",
            fix="free space, or write to another disk.",
        )
