"""What `engines/<target>/` of a bundle holds: TensorRT engines, and what they were built for.

`engines.json` is the JSON form of `EngineSet`. `atp-export engines` writes it again after every
engine, so it lists those that are whole; the runtime refuses what was built for another
TensorRT, another GPU or other graphs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_runtime.errors import InputError
from atp_runtime.manifest import AxisRange, FileRecord
from atp_runtime.schema import from_json, to_json

FORMAT = "atp-engines"
SCHEMA_VERSION = 1
ENGINES_DIRECTORY = "engines"
ENGINES_NAME = "engines.json"
TIMING_CACHE_NAME = "timing.cache"
PREFILL, DECODE = "prefill", "decode"
_BUILD = "build the engines on this machine: atp-export engines BUNDLE."


@dataclass(frozen=True)
class Target:
    """What an engine can run on.

    Attributes:
        library: "tensorrt", or "tensorrt_rtx".
        version: Of the library, in full: plans load in no other.
        sm: Compute capability, major * 10 + minor: 87 on Orin.
        gpu: The GPU's name.
    """

    library: str
    version: str
    sm: int
    gpu: str

    @property
    def directory(self) -> str:
        """Where engines for it lie, relative to the bundle."""
        short = "trt" if self.library == "tensorrt" else "rtx"
        return f"{ENGINES_DIRECTORY}/{short}{self.version}-sm{self.sm}"

    def __str__(self) -> str:
        """As people say it."""
        name = "TensorRT" if self.library == "tensorrt" else "TensorRT for RTX"
        return f"{name} {self.version} on {self.gpu} (SM {self.sm // 10}.{self.sm % 10})"


@dataclass(frozen=True)
class EngineProfile:
    """An optimisation profile.

    Attributes:
        name: `PREFILL` or `DECODE`; stages other than segments have "prefill" only.
        axes: The lengths that each named axis of the stage may take in it.
    """

    name: str
    axes: Mapping[str, AxisRange]

    def admits(self, lengths: Mapping[str, int]) -> bool:
        """Whether every axis has a length in its range."""
        return all(
            self.axes[axis].minimum <= length <= self.axes[axis].maximum
            for axis, length in lengths.items()
        )


@dataclass(frozen=True)
class Engine:
    """One stage's engine.

    Attributes:
        file: The plan, relative to the directory of `engines.json`.
        record: Its size and hash.
        stamp: Of graph, weights, profiles, options, TensorRT and SM: what has the same stamp
            need not be built again.
        profiles: In the order of their indices in the engine.
        layers: Of the engine, after fusion.
        scratch_bytes: Device memory that a context needs besides weights, inputs and outputs.
        seconds: The build took.
        sources: SHA-256 of the graph and the weights it was built from, by their names in the
            bundle. The runtime refuses an engine of other files than the bundle has now.
    """

    file: str
    record: FileRecord
    stamp: str
    profiles: tuple[EngineProfile, ...]
    layers: int
    scratch_bytes: int
    seconds: float
    sources: Mapping[str, str]

    def changed_source(self, files: Mapping[str, FileRecord]) -> str | None:
        """What it was built from that the bundle's files are not any more; None if nothing."""
        for name, sha256 in self.sources.items():
            record = files.get(name)
            if record is None or record.sha256 != sha256:
                return name
        return None


@dataclass(frozen=True)
class EngineSet:
    """The engines of a bundle for one target, by the names of their stages."""

    format: str
    schema_version: int
    target: Target
    dialect: str
    engines: Mapping[str, Engine]


def dump_engine_set(engines: EngineSet) -> str:
    """The text of `engines.json`."""
    return json.dumps(to_json(engines), indent=2) + "\n"


def read_engine_set(directory: Path) -> EngineSet:
    """Reads `engines.json` of a target's directory.

    Raises:
        InputError: There is none, it is not JSON, or its schema is newer or malformed.
    """
    path = directory / ENGINES_NAME
    if not path.is_file():
        raise InputError(f"{directory}: no {ENGINES_NAME}", why="it has no engines.", fix=_BUILD)
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", why="it is not JSON.", fix=_BUILD) from error
    found = (value.get("format"), value.get("schema_version")) if isinstance(value, dict) else ()
    if found != (FORMAT, SCHEMA_VERSION):
        raise InputError(
            f"{path}: not version {SCHEMA_VERSION} of {FORMAT}",
            why="another version of atp-llava wrote it, or something else did.",
            fix=_BUILD,
        )
    return from_json(EngineSet, value, source=str(path), fix=_BUILD)


def engines_for(bundle: Path, target: Target) -> EngineSet | None:
    """The engines of a bundle that were built for exactly this target, if there are any.

    Raises:
        InputError: What lists them is malformed.
    """
    directory = bundle / target.directory
    if not (directory / ENGINES_NAME).is_file():
        return None
    engines = read_engine_set(directory)
    return engines if engines.target == target else None


def described_targets(bundle: Path, *, but: Target | None = None) -> list[str]:
    """What the bundle has engines for; a set that cannot be read counts as one of that name."""
    found = []
    for path in sorted(bundle.glob(f"{ENGINES_DIRECTORY}/*/{ENGINES_NAME}")):
        try:
            target = read_engine_set(path.parent).target
        except InputError:
            found.append(f"{path.parent.name} (unreadable)")
            continue
        if target != but:
            found.append(str(target))
    return found
