"""Measured times of a bundle's stages: `latency/<machine>.json` beside the bundle's files.

A table is of one machine, backend, thread count and power mode, and of the graphs it was measured
with; for any other it is refused. Other thresholds in the manifest change nothing about it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atp_runtime.errors import InputError
from atp_runtime.evaluation.json_files import parse_declared, write_declared
from atp_runtime.evaluation.machine import this_machine
from atp_runtime.latency.model import Latency
from atp_runtime.manifest import Manifest

FORMAT = "atp-latency"
SCHEMA_VERSION = 1
DIRECTORY = "latency"
_MEASURE = "measure it on this machine: atp-profile BUNDLE."
_POWER_STATUS = Path("/var/lib/nvpmodel/status")


@dataclass(frozen=True)
class Setting:
    """What times depend on besides the graphs.

    Attributes:
        machine: The board's name, or the processor's.
        backend: See `atp_runtime.backends.BACKENDS`.
        threads: CPU threads; None where the backend decided.
        power: A Jetson's power mode, as nvpmodel records it; None elsewhere.
    """

    machine: str
    backend: str
    threads: int | None
    power: str | None

    @property
    def file_name(self) -> str:
        """Where its table lies in `DIRECTORY`."""
        threads = f"{self.threads} threads" if self.threads else ""
        parts = (self.machine, self.backend, threads, self.power or "")
        words = re.findall(r"[a-z0-9]+", " ".join(parts).lower())
        return "-".join(words) + ".json"

    def __str__(self) -> str:
        """As people say it."""
        threads = f"{self.threads} threads" if self.threads else "threads by default"
        parts = (self.machine, self.backend, threads, self.power)
        return ", ".join(part for part in parts if part)


def this_setting(backend: str, threads: int | None) -> Setting:
    """The one of this machine, now."""
    try:
        power = _POWER_STATUS.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        power = ""
    return Setting(this_machine(threads).processor, backend, threads, power or None)


@dataclass(frozen=True)
class Timing:
    """What a number of runs took.

    Attributes:
        tokens: New positions of each; of the vision stage, the features of an image.
        median_seconds: Of the runs.
        p95_seconds: Their 95th percentile.
    """

    tokens: int
    median_seconds: float
    p95_seconds: float

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 <= self.median_seconds <= self.p95_seconds:
            raise ValueError(f"no timing: {self}")


@dataclass(frozen=True)
class LatencyTable:
    """A whole table.

    Attributes:
        format: `FORMAT`.
        schema_version: `SCHEMA_VERSION`.
        setting: Where it was measured.
        packages: Versions by name.
        graphs: See `graphs_hash`.
        runs: Behind each timing.
        stages: By name, each by rising tokens.
        between: What the host takes at a pruning point, by rising tokens.
        prefill: The whole decoder's prefill, likewise; what its spread is taken from.
    """

    format: str
    schema_version: int
    setting: Setting
    packages: Mapping[str, str]
    graphs: str
    runs: int
    stages: Mapping[str, tuple[Timing, ...]]
    between: tuple[Timing, ...]
    prefill: tuple[Timing, ...]

    def __post_init__(self) -> None:
        for name, timings in (*self.stages.items(), ("prefill", self.prefill)):
            tokens = [timing.tokens for timing in timings]
            if not tokens or tokens != sorted(set(tokens)):
                raise ValueError(f"{name} has timings of {tokens} tokens, they must rise")


class MeasuredLatency(Latency):
    """Times between those of a table, and beyond.

    Below the fewest tokens a stage is taken to need what it needs for these; above the most, what
    one more of these costs on average, for each. A shorter run is never taken to need longer.

    Args:
        table: Of the bundle in question.
    """

    def __init__(self, table: LatencyTable) -> None:
        self._stages = {name: _Line(timings) for name, timings in table.stages.items()}
        self._between = _Line(table.between) if table.between else None
        ratios = [it.p95_seconds / it.median_seconds for it in table.prefill if it.median_seconds]
        self.spread = max(float(np.median(ratios)), 1.0) if ratios else 1.0

    def stage(self, name: str, tokens: int, visual: int = 0) -> float:  # noqa: ARG002
        """See `Latency.stage`; sequences were measured with as many visual tokens as they hold."""
        return self._stages[name](tokens)

    def between(self, tokens: int) -> float:
        """See `Latency.between`."""
        return self._between(tokens) if self._between else 0.0


class _Line:
    """Medians, joined by straight lines."""

    def __init__(self, timings: Sequence[Timing]) -> None:
        self._tokens = np.array([timing.tokens for timing in timings], dtype=np.float64)
        medians = np.array([timing.median_seconds for timing in timings], dtype=np.float64)
        self._seconds = np.maximum.accumulate(medians)

    def __call__(self, tokens: int) -> float:
        last = float(self._seconds[-1])
        beyond = max(tokens - float(self._tokens[-1]), 0.0) * last / float(self._tokens[-1])
        return float(np.interp(tokens, self._tokens, self._seconds)) + beyond


def timed_stages(manifest: Manifest) -> tuple[str, ...]:
    """Stages that have times of their own; a projector's are in the vision stage's."""
    return tuple(stage.name for stage in manifest.stages if stage.kind != "projector")


def graphs_hash(manifest: Manifest) -> str:
    """SHA-256 over the graphs and weights of all stages: what a table is of."""
    names = [
        name
        for stage in manifest.stages
        for name in (stage.graph, *stage.other_graphs.values(), *stage.data)
    ]
    hashes = {name: manifest.files[name].sha256 for name in names}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def write_table(path: Path, table: LatencyTable) -> None:
    """Writes a table, whole or not at all; makes its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_declared(path, table)


def read_table(path: Path, manifest: Manifest) -> LatencyTable:
    """Reads a table of this bundle.

    Raises:
        InputError: It is not there, damaged, newer, or of other graphs.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}", why="it is no latency table.", fix=_MEASURE) from error
    found = (value.get("format"), value.get("schema_version")) if isinstance(value, dict) else ()
    if found != (FORMAT, SCHEMA_VERSION):
        raise InputError(
            f"{path}: not version {SCHEMA_VERSION} of {FORMAT}",
            why="another version of atp-llava wrote it, or something else did.",
            fix=_MEASURE,
        )
    table = parse_declared(LatencyTable, text, source=str(path), fix=_MEASURE)
    missing = set(timed_stages(manifest)) - set(table.stages)
    if table.graphs != graphs_hash(manifest) or missing:
        raise InputError(
            f"{path}: measured with other graphs",
            why="the bundle's stages are not those whose times it has.",
            fix=_MEASURE,
        )
    return table


def table_for(bundle: Path, manifest: Manifest, setting: Setting) -> LatencyTable:
    """The bundle's table for this setting.

    Raises:
        InputError: It has none, or the table cannot be used.
    """
    directory = bundle / DIRECTORY
    path = directory / setting.file_name
    if not path.is_file():
        held = ", ".join(sorted(it.stem for it in directory.glob("*.json"))) or "none"
        raise InputError(
            f"{bundle}: no measured times for {setting}",
            why=f"its tables are: {held}.",
            fix=_MEASURE,
        )
    return read_table(path, manifest)
