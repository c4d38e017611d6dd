"""`engines/<target>/` of a bundle: whole engines, recorded one by one, and what was measured.

A plan is written under another name and then put in its place; `engines.json` lists a stage
before and after that, but never while its plan is being exchanged. So whatever happens, the
directory lists only engines that are whole, and the next build resumes with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from atp_export.engines.build import BuiltEngine
from atp_export.workspace import write_atomically
from atp_runtime.directory_lock import holds
from atp_runtime.engine_set import (
    ENGINES_NAME,
    FORMAT,
    SCHEMA_VERSION,
    TIMING_CACHE_NAME,
    Engine,
    EngineProfile,
    EngineSet,
    Target,
    dump_engine_set,
    read_engine_set,
)
from atp_runtime.errors import InputError
from atp_runtime.manifest import FileRecord
from atp_runtime.recorded_files import sha256_of

LOCK_NAME = "build.lock"
_UNFINISHED = ".new"
_BLOCK = 1 << 24


class EngineDirectory:
    """The engines for one target, held by one process at a time.

    Args:
        bundle: The bundle's directory.
        target: What the engines run on.
        dialect: Which graphs they are built from.

    Attributes:
        root: Where they are.
        target: As given.
        dialect: As given.
        engines: Those that are whole, by stage.
    """

    def __init__(self, bundle: Path, target: Target, dialect: str) -> None:
        self.root = bundle / target.directory
        self.target = target
        self.dialect = dialect
        self.engines: dict[str, Engine] = {}

    @contextmanager
    def open(self) -> Iterator[EngineDirectory]:
        """Makes or resumes the directory; one that stays empty is removed again.

        Raises:
            InputError: Another process is building these engines.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK_NAME).open("w") as lock:
            if not holds(lock, self.root / LOCK_NAME):
                raise InputError(
                    f"{self.root}: another atp-export engines is building here",
                    why="two builders would mix their files, and share the GPU's memory.",
                    fix="wait for it to end.",
                )
            try:
                self._resume()
                yield self
            finally:
                (self.root / LOCK_NAME).unlink(missing_ok=True)
                with suppress(OSError):  # as a rule there is something in it
                    self.root.rmdir()

    def reusable(self, stage: str, stamp: str) -> Engine | None:
        """The stage's engine, if it was built from the same and its plan is whole."""
        engine = self.engines.get(stage)
        if engine is None or engine.stamp != stamp:
            return None
        return engine if _is_whole(self.root / engine.file, engine.record) else None

    def add(
        self,
        stage: str,
        built: BuiltEngine,
        profiles: tuple[EngineProfile, ...],
        stamp: str,
        sources: Mapping[str, str],
    ) -> Engine:
        """Writes an engine and records it.

        Where the engine could not be opened for want of a GPU, layers and scratch bytes are 0.

        Args:
            stage: Its name.
            built: The engine.
            profiles: Its own.
            stamp: See `Engine`.
            sources: See `Engine`.
        """
        path = self.root / f"{stage}.plan"
        record = _write(path.with_name(path.name + _UNFINISHED), built.plan)
        self.engines.pop(stage, None)
        self._record()
        path.with_name(path.name + _UNFINISHED).replace(path)
        found = built.inspection
        self.engines[stage] = Engine(
            file=path.name,
            record=record,
            stamp=stamp,
            profiles=profiles,
            layers=found.layers if found else 0,
            scratch_bytes=found.scratch_bytes if found else 0,
            seconds=round(built.seconds, 3),
            sources=sources,
        )
        self._record()
        return self.engines[stage]

    def keep_only(self, stages: tuple[str, ...]) -> None:
        """Forgets engines of stages that the bundle does not have any more."""
        gone = [self.engines.pop(name) for name in set(self.engines) - set(stages)]
        if gone:
            self._record()
            for engine in gone:
                (self.root / engine.file).unlink(missing_ok=True)

    @property
    def timing_cache(self) -> bytes:
        """What earlier builds measured."""
        path = self.root / TIMING_CACHE_NAME
        return path.read_bytes() if path.is_file() else b""

    def keep_timing_cache(self, measured: bytes) -> None:
        """Keeps what builds measured; nothing if the library gave nothing."""
        if measured:
            temporary = self.root / (TIMING_CACHE_NAME + _UNFINISHED)
            temporary.write_bytes(measured)
            temporary.replace(self.root / TIMING_CACHE_NAME)

    def _resume(self) -> None:
        for path in self.root.glob(f"*{_UNFINISHED}"):
            path.unlink()
        try:
            found = read_engine_set(self.root)
        except InputError:
            return  # missing, damaged or of another version: there is nothing to resume from
        if (found.target, found.dialect) == (self.target, self.dialect):
            self.engines = dict(found.engines)

    def _record(self) -> None:
        engines = EngineSet(FORMAT, SCHEMA_VERSION, self.target, self.dialect, self.engines)
        write_atomically(self.root / ENGINES_NAME, dump_engine_set(engines))


def _write(path: Path, plan: memoryview) -> FileRecord:
    digest = hashlib.sha256()
    try:
        with path.open("wb") as file:
            for start in range(0, plan.nbytes, _BLOCK):
                block = plan[start : start + _BLOCK]
                digest.update(block)
                file.write(block)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileRecord(plan.nbytes, digest.hexdigest())


def _is_whole(path: Path, record: FileRecord) -> bool:
    """Whether the plan is as it was recorded; an unchanged big one is hashed once per machine."""
    file = path.resolve()
    if not file.is_file() or file.stat().st_size != record.bytes:
        return False
    return sha256_of(file, record) == record.sha256
