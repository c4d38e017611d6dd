"""The state of a run that is not finished, beside the directory it is to become."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atp_models.json_files import read_json, write_json
from atp_models.training.checkpoint_writer import REPORT
from atp_runtime.directory_lock import holds
from atp_runtime.errors import InputError

_KEY_FILE, _LOCK = "run.json", "lock"
_STATE = "trainer_state.json"


class RunState:
    """`.OUT.training`: checkpoints of the optimiser, and what they were made with.

    Args:
        out: The directory that the run is to write.
        key: Everything that decides on its weights; JSON values, nested by name.

    Attributes:
        directory: Where it is.
        key: As JSON has it.
    """

    def __init__(self, out: Path, key: Mapping[str, Any]) -> None:
        self.directory = out.with_name(f".{out.name}.training")
        self._out = out
        self.key = json.loads(json.dumps(key))

    @property
    def is_finished(self) -> bool:
        """Whether `out` is there already, made with the same key.

        Raises:
            InputError: It is there, made with another, or by something else.
        """
        if not self._out.exists() or (self._out.is_dir() and not any(self._out.iterdir())):
            return False
        report = self._out / REPORT
        if not report.is_file():
            raise InputError(
                f"{self._out} exists and was not written by atp-train",
                why="training never writes over anything.",
                fix="name another directory, or remove this one.",
            )
        self._refuse_other(read_json(report).get("key"), self._out)
        return True

    def begin(self) -> None:
        """Makes the directory, or checks that it belongs to the same run.

        Raises:
            InputError: It has checkpoints of another; the message says what differs.
        """
        file = self.directory / _KEY_FILE
        if file.exists() and self.last_checkpoint() is not None:
            self._refuse_other(read_json(file), self.directory)
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")  # several processes may do this at once
        write_json(partial, self.key)
        partial.replace(file)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out; of the processes of one run the first does.

        Raises:
            InputError: Another run is at work there, or see `begin`.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if os.environ.get("RANK", "0") != "0":
            self.begin()
            yield
            return
        path = self.directory / _LOCK
        with path.open("w", encoding="utf-8") as lock:
            if not holds(lock, path):
                raise InputError(
                    f"{self._out}: another atp-train is at work on it",
                    why="two runs would mix their checkpoints.",
                    fix="wait for it to end, or name another directory.",
                )
            self.begin()
            yield

    def last_checkpoint(self) -> Path | None:
        """The newest whole one; the trainer writes its state last."""
        found = [path for path in self.directory.glob("checkpoint-*") if (path / _STATE).is_file()]
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def remove(self) -> None:
        """Forgets the run, once its result is written."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _refuse_other(self, found: Any, where: Path) -> None:
        differences = [f"\n    {line}" for line in _differences(found, self.key)]
        if differences:
            raise InputError(
                f"{where} belongs to another run:{''.join(differences)}",
                why="its result would be neither's.",
                fix=f"give the same options, name another directory, or remove {where}.",
            )


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield f"{name or 'key'}: it has {json.dumps(old)}, now {json.dumps(new)}"
