"""A profile: `profile.json`, what was measured of a bundle on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atp_runtime.errors import InputError
from atp_runtime.evaluation.json_files import read_declared, write_declared
from atp_runtime.latency.table import Setting
from atp_runtime.profiling.ceiling import Ceiling
from atp_runtime.profiling.sensors import SensorRow

FORMAT = "atp-profile"
SCHEMA_VERSION = 1
FILE = "profile.json"
DENSE, PRUNED = "dense", "pruned"
_MEASURE = "measure it: atp-profile BUNDLE --image PHOTO --prompt TEXT."


@dataclass(frozen=True)
class Spread:
    """Seconds of several runs."""

    minimum: float
    median: float
    p90: float
    p99: float

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.median <= self.p90 <= self.p99:
            raise ValueError(f"no spread: {self}")


@dataclass(frozen=True)
class Row:
    """A part of an answer.

    Attributes:
        phase: "prompt", "vision", "prefill" or "decode".
        name: A stage's, or of what the host does.
        entering: Tokens that enter it, the mean of the runs; None where tokens do not.
        leaving: Tokens that leave it, likewise.
        seconds: Per answer; of "decode", per token.
        gflops: 1e9 operations per second at the median; None where the arithmetic is not known.
        gbps: 1e9 bytes per second of weights and caches at the median, likewise.
    """

    phase: str
    name: str
    entering: float | None
    leaving: float | None
    seconds: Spread
    gflops: float | None
    gbps: float | None


@dataclass(frozen=True)
class MemorySample:
    """The process's resident memory at a moment of an answer."""

    seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class Shares:
    """What of prefill and decode is not the model, medians of the answers' own shares.

    Attributes:
        prefill: Outside of the backend's runs of stages, of the prefill and the first sampling.
        decode: Likewise of what comes after it; None if nothing does.
        selection: Rules at the pruning points, of the prefill.
        gather: Taking along what they keep, likewise. It is inside of the stages, so it is taken as
            reading and writing these rows at the machine's best; None where that is not known.
    """

    prefill: float
    decode: float | None
    selection: float
    gather: float | None


@dataclass(frozen=True)
class Mode:
    """Answers with or without pruning.

    Attributes:
        first_token: From the question to the first token.
        token: Each token after it; None if there was none.
        visual_tokens: Averaged over all decoder layers and runs.
        cache_bytes: Keys and values at the end of an answer, the mean of the runs.
        rows: In the order they run.
        memory: During one answer more, in the order of time; empty where the system does not say.
        joules: That the whole module took for an answer, the mean of the runs; None where no sensor
            tells.
        shares: What the model is not; None in profiles of earlier versions.
    """

    first_token: Spread
    token: Spread | None
    visual_tokens: float
    cache_bytes: float
    rows: tuple[Row, ...]
    memory: tuple[MemorySample, ...]
    joules: float | None = None
    shares: Shares | None = None


@dataclass(frozen=True)
class ProfiledBundle:
    """What was measured.

    Attributes:
        name: The directory's.
        graphs: See `graphs_hash`.
        precision: "float32" or "float16", and behind it what weights are quantised to.
        layers: Of the decoder.
        weight_bytes: Of all stages.
    """

    name: str
    graphs: str
    precision: str
    layers: int
    weight_bytes: int


@dataclass(frozen=True)
class Asked:
    """How it was measured.

    Attributes:
        questions: How many took turns.
        source: The photo's name, or the data's.
        new_tokens: Of each answer.
        runs: Of each mode, warm-up not counted.
        warm_up: Runs before them.
    """

    questions: int
    source: str
    new_tokens: int
    runs: int
    warm_up: int


@dataclass(frozen=True)
class ColdStart:
    """The first answer of the process.

    Attributes:
        load_seconds: Reading, checking and preparing the bundle.
        first_token_seconds: From the first question to its first token.
    """

    load_seconds: float
    first_token_seconds: float


@dataclass(frozen=True)
class Profile:
    """A whole profile.

    Attributes:
        format: `FORMAT`.
        schema_version: `SCHEMA_VERSION`.
        bundle: What was measured.
        setting: Where.
        packages: Versions by name.
        asked: How.
        ceiling: What the machine can do; None where it is not known how to measure that.
        cold: The first answer.
        peak_memory_bytes: The process's highest resident memory; 0 where the system does not say.
        clock_seconds: What reading the clock took of an answer: profiling's own share.
        sensors: What power, temperature and clocks were while the runs were made.
        modes: `DENSE` and, of a bundle that prunes, `PRUNED`. Their runs took turns.
    """

    format: str
    schema_version: int
    bundle: ProfiledBundle
    setting: Setting
    packages: Mapping[str, str]
    asked: Asked
    ceiling: Ceiling | None
    cold: ColdStart
    peak_memory_bytes: int
    clock_seconds: float
    sensors: tuple[SensorRow, ...]
    modes: Mapping[str, Mode]

    def __post_init__(self) -> None:
        if (self.format, self.schema_version) != (FORMAT, SCHEMA_VERSION):
            raise ValueError(f"{self.format} {self.schema_version}, not {FORMAT} {SCHEMA_VERSION}")
        if not self.modes or set(self.modes) - {DENSE, PRUNED}:
            raise ValueError(f"modes {', '.join(self.modes) or 'none'}")

    @property
    def speedup(self) -> float | None:
        """Of the first token, by pruning; None without it."""
        if len(self.modes) < 2:
            return None
        dense, pruned = (self.modes[name].first_token.median for name in (DENSE, PRUNED))
        return dense / pruned


def write_profile(path: Path, profile: Profile) -> None:
    """Writes the file, as a whole or not at all."""
    write_declared(path, profile)


def read_profile(path: Path) -> Profile:
    """Reads a profile.

    Args:
        path: The file, or the directory it is in.

    Raises:
        InputError: It is not there or no profile.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: not there", why="a profile is wanted.", fix=_MEASURE)
    return read_declared(Profile, file, fix=_MEASURE)
