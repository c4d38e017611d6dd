"""The directory an export works in until the bundle is whole.

Work happens in `BUNDLE.partial`; a finished stage is recorded there, so that an interrupted
export resumes behind it. The last step renames the directory, so a directory of the bundle's
name is always a whole bundle.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_runtime.errors import InputError, MachineError
from atp_runtime.manifest import MANIFEST_NAME, FileRecord, Stage
from atp_runtime.schema import from_json, to_json

STATE_NAME = "export-state.json"
LOCK_NAME = "export.lock"
EXPORT_RECORD = "reports/export.json"


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
    """`BUNDLE.partial`, held by one process at a time."""

    def __init__(self, bundle: Path, key: str) -> None:
        self.bundle = bundle
        self.root = bundle.with_name(bundle.name + ".partial")
        self.key = key
        self.steps: dict[str, FinishedStep] = {}
        self.resumed: tuple[str, ...] = ()

    @contextmanager
    def open(self) -> Iterator[Workspace]:
        """Makes or resumes the directory.

        What a former export left is kept if it was made from the same checkpoint with the same
        options, and removed otherwise.

        Raises:
            InputError: Another export is writing the same bundle.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK_NAME).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{self.bundle}: another export is writing this bundle",
                    why="two writers would mix their files.",
                    fix="wait for it to end, or choose another directory.",
                ) from error
            self._resume()
            yield self

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
        return all(path.is_file() and path.stat().st_size == r.bytes for path, r in paths)

    def finish(self, name: str, step: FinishedStep) -> None:
        """Records a step whose files are completely written."""
        self.steps[name] = step
        state = _State(self.key, self.steps)
        write_atomically(self.root / STATE_NAME, json.dumps(to_json(state), indent=1))

    def publish(self) -> None:
        """Makes the finished directory the bundle."""
        for name in (STATE_NAME, LOCK_NAME):
            (self.root / name).unlink(missing_ok=True)
        self.root.rename(self.bundle)


def _read_state(path: Path) -> _State | None:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        return from_json(_State, value, source=str(path), fix="remove it.")
    except (OSError, ValueError, InputError):
        # Missing, or cut off in the middle: there is nothing to resume from.
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
    """Size and hash of a small file."""
    data = path.read_bytes()
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def check_space(directory: Path, needed: int) -> None:
    """Refuses to begin what cannot end.

    Raises:
        MachineError: The file system has less than `needed` bytes free.
    """
    existing = next(p for p in [directory, *directory.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise MachineError(
            f"{existing}: {free / 1e9:.1f} GB free",
            why=f"the bundle takes {needed / 1e9:.1f} GB.",
            fix="free space, or write to another disk.",
        )


def is_bundle(path: Path) -> bool:
    """Whether a finished bundle is there."""
    return (path / MANIFEST_NAME).is_file()
