"""Finds the engines of a bundle that this machine can run, and checks them before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import (
    ENGINES_NAME,
    Engine,
    EngineSet,
    Target,
    described_targets,
    engines_for,
)
from atp_runtime.errors import CheckFailedError, InputError, MachineError
from atp_runtime.manifest import Stage
from atp_runtime.recorded_files import sha256_of

_BUILD = "build the engines on this machine: atp-export engines BUNDLE."
_AGAIN = "build them again: atp-export engines BUNDLE."


@dataclass(frozen=True)
class EngineFiles:
    """The engines for this machine.

    Attributes:
        directory: Theirs, relative to the bundle.
        engines: What `engines.json` says.
    """

    directory: str
    engines: EngineSet


def find_engines(bundle: Bundle, target: Target) -> EngineFiles:
    """The engines that were built for exactly this TensorRT and this GPU.

    Raises:
        InputError: There are none, or what lists them is malformed.
    """
    # Resolved by the bundle, which follows no link that leaves it.
    bundle.path(f"{target.directory}/{ENGINES_NAME}")
    engines = engines_for(bundle.root, target)
    if engines is not None:
        return EngineFiles(target.directory, engines)
    found = described_targets(bundle.root)
    others = f"there are engines for {'; '.join(found)}. " if found else ""
    raise InputError(
        f"{bundle.root}: no engines for {target}",
        why=f"{others}An engine runs with the TensorRT and on the GPU it was built for, only.",
        fix=_BUILD,
    )


def checked_plan(bundle: Bundle, files: EngineFiles, stage: Stage) -> tuple[Engine, Path]:
    """A stage's engine and its plan, which is the file that was built, of this bundle's graph.

    A big plan is not hashed again that was hashed before on this machine and has not changed.

    Args:
        bundle: An open one.
        files: Its engines.
        stage: One of its stages.

    Raises:
        InputError: There is no engine, it is of other files than the bundle has, or its plan is
            missing or too short.
        CheckFailedError: The plan is not the one that was built.
        MachineError: It cannot be read.
    """
    engine = files.engines.engines.get(stage.name)
    if engine is None:
        raise InputError(
            f"{bundle.root / files.directory}: no engine for stage {stage.name}",
            why="it was not built yet, or the build was interrupted.",
            fix="run atp-export engines BUNDLE on this machine; it goes on where it stopped.",
        )
    _check_sources(bundle, stage, engine)
    path = bundle.path(f"{files.directory}/{engine.file}")
    _check_size(path, engine)
    _check_hash(path, engine)
    return engine, path


def _check_sources(bundle: Bundle, stage: Stage, engine: Engine) -> None:
    """A bundle copied over an older one leaves the engines of that in place."""
    name = engine.changed_source(bundle.manifest.files)
    if name is not None:
        raise InputError(
            f"{bundle.root}: the engine of stage {stage.name} is not of this bundle",
            why=f"it was built from another {name}; its answers would be another model's.",
            fix=_AGAIN,
        )


def _check_size(path: Path, engine: Engine) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None or size < engine.record.bytes:
        raise InputError(
            f"{path}: {'missing' if size is None else f'{size} bytes'}",
            why=f"it had {engine.record.bytes} bytes when it was built.",
            fix=_AGAIN,
        )
    if size > engine.record.bytes:
        raise _changed(path, f"{size} bytes instead of {engine.record.bytes}")


def _check_hash(path: Path, engine: Engine) -> None:
    try:
        found = sha256_of(path, engine.record)
    except OSError as error:
        raise MachineError(
            f"{path}: {error.strerror or error}",
            why="the engine cannot be read.",
            fix="check the permissions and the disk.",
        ) from error
    if found != engine.record.sha256:
        raise _changed(path, f"SHA-256 {found[:12]}... instead of {engine.record.sha256[:12]}...")


def _changed(path: Path, difference: str) -> CheckFailedError:
    return CheckFailedError(
        f"{path}: {difference}",
        why="it is not the engine that was built: damaged, or changed by someone, and an engine "
        "is a program that runs with your rights.",
        fix=f"do not use it; {_AGAIN}",
    )
