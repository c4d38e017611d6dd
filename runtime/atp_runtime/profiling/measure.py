"""Measures a profile: the same questions with and without pruning, by turns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from atp_runtime.answer import Answer
from atp_runtime.backends import BACKENDS, open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.evaluation.machine import this_machine
from atp_runtime.generation import GenerationOptions
from atp_runtime.latency.table import Setting, graphs_hash, this_setting
from atp_runtime.manifest import Manifest
from atp_runtime.profiling.aggregate import make_mode
from atp_runtime.profiling.ceiling import measure_ceiling
from atp_runtime.profiling.memory_trace import trace_memory
from atp_runtime.profiling.profile_file import (
    DENSE,
    FORMAT,
    PRUNED,
    SCHEMA_VERSION,
    Asked,
    ColdStart,
    Mode,
    Profile,
    ProfiledBundle,
)
from atp_runtime.profiling.sensor_log import SensorLog
from atp_runtime.profiling.sensors import find_sensors
from atp_runtime.profiling.timed_turn import Question, TimedTurn, TurnTimer
from atp_runtime.ranges import open_nvtx
from atp_runtime.selection import Selectors, SelectTokens, keeps_all
from atp_runtime.session import Session
from atp_runtime.statistics import peak_memory_bytes

_CLOCK_READINGS = 100_000

Told = Callable[[int, int], None]
"""Told the runs that are done and the runs there will be."""


@dataclass(frozen=True)
class ProfilePlan:
    """What is measured.

    Attributes:
        questions: At least one; each run asks one of them, by turns.
        source: Where they come from, for people.
        new_tokens: Of each answer.
        runs: That count.
        warm_up: Before them.
    """

    questions: tuple[Question, ...]
    source: str
    new_tokens: int
    runs: int
    warm_up: int

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {value}"
            for name, value, least in (
                ("runs", self.runs, 1),
                ("warm-up runs", self.warm_up, 0),
                ("new tokens", self.new_tokens, 1),
            )
            if value < least
        ]
        if wrong:
            raise InputError(wrong[0], why="there would be nothing to measure.", fix="choose more.")


@dataclass(frozen=True)
class RunBy:
    """What runs the bundle, see `open_backend`.

    Attributes:
        backend: Its name.
        threads: Of the CPU; None lets the backend decide.
        cuda_graphs: Whether decode steps may be recorded.
        nvtx: Whether the parts of answers lie in NVTX ranges, whose cost is then measured, too.
    """

    backend: str = BACKENDS[0]
    threads: int | None = None
    cuda_graphs: bool = True
    nvtx: bool = False

    @property
    def setting(self) -> Setting:
        """Of this machine, now."""
        return this_setting(self.backend, self.threads)


@dataclass(frozen=True)
class Measured:
    """What measuring gives.

    Attributes:
        profile: The profile.
        complete: Whether all of its runs were made.
        answer: To the first question, as the bundle prunes: it knows what was pruned.
    """

    profile: Profile
    complete: bool
    answer: Answer


def measure_profile(path: Path, plan: ProfilePlan, run_by: RunBy, told: Told) -> Measured:
    """Loads a bundle and measures it.

    Ctrl-C ends the measuring: the runs up to it make the profile, if there is one of each mode.

    Args:
        path: The bundle's directory.
        plan: What is measured.
        run_by: What runs it.
        told: How far it is.

    Raises:
        InputError: The bundle or a question cannot be used.
        MachineError: Memory does not suffice, or a package or the GPU is missing.
    """
    ranges = open_nvtx() if run_by.nvtx else None
    began = perf_counter()
    bundle = Bundle.open(path)
    backend = open_backend(run_by.backend, threads=run_by.threads, cuda_graphs=run_by.cuda_graphs)
    with Session(bundle, backend) as session:
        loaded = perf_counter()
        if ranges is not None:
            session.mark_parts(ranges)
        timer = TurnTimer(session.model, plan.new_tokens)
        first = plan.questions[0]
        answered = timer.run(first, session.model.select)
        cold = ColdStart(loaded - began, answered.first_token_seconds)
        ceiling = measure_ceiling(run_by.threads) if run_by.backend == BACKENDS[0] else None
        runs = _Runs(timer, plan, _rules(session))
        with SensorLog(find_sensors()) as sensors:
            complete = runs.make(told)
        manifest = bundle.manifest
        turns = [turn for turns in runs.turns.values() for turn in turns]
        return Measured(
            Profile(
                FORMAT,
                SCHEMA_VERSION,
                _bundle(path, manifest),
                run_by.setting,
                this_machine(run_by.threads).packages,
                Asked(
                    len(plan.questions),
                    plan.source,
                    plan.new_tokens,
                    len(runs.turns[DENSE]),
                    plan.warm_up,
                ),
                ceiling,
                cold,
                peak_memory_bytes(),
                _clock_seconds() * float(np.mean([turn.readings for turn in turns])),
                sensors.rows(),
                runs.modes(manifest, sensors, ceiling.gbps if ceiling else None),
            ),
            complete,
            session.ask(first.prompt, first.images, GenerationOptions(max_new_tokens=1)),
        )


class _Runs:
    """Answers of each mode, by turns, so that a machine that gets slower does so for both."""

    def __init__(
        self, timer: TurnTimer, plan: ProfilePlan, rules: Mapping[str, SelectTokens]
    ) -> None:
        self._timer = timer
        self._plan = plan
        self._rules = rules
        self.turns: dict[str, list[TimedTurn]] = defaultdict(list)
        self._spans: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def make(self, told: Told) -> bool:
        """All of them; returns whether none was missed."""
        plan = self._plan
        total = plan.warm_up + plan.runs
        try:
            for number in range(total):
                question = plan.questions[number % len(plan.questions)]
                turns = {mode: self._run(question, rule) for mode, rule in self._rules.items()}
                if number >= plan.warm_up:
                    for mode, (turn, span) in turns.items():
                        self.turns[mode].append(turn)
                        self._spans[mode].append(span)
                told(number + 1, total)
        except KeyboardInterrupt:
            if len(self.turns) < len(self._rules):
                raise
            return False
        return True

    def _run(self, question: Question, rule: SelectTokens) -> tuple[TimedTurn, tuple[float, float]]:
        """An answer, and when it began and ended."""
        began = perf_counter()
        turn = self._timer.run(question, rule)
        return turn, (began, perf_counter())

    def modes(self, manifest: Manifest, sensors: SensorLog, gbps: float | None) -> dict[str, Mode]:
        """What they come to; one answer more of each shows the memory."""
        question = self._plan.questions[0]
        return {
            mode: make_mode(
                manifest,
                self.turns[mode],
                trace_memory(partial(self._timer.run, question, rule)),
                sensors.joules(self._spans[mode]),
                gbps,
            )
            for mode, rule in self._rules.items()
        }


def _rules(session: Session) -> dict[str, SelectTokens]:
    """Of each mode; one that drops nothing is the dense one."""
    select = session.model.select
    everything = Selectors.keeping_all(session.model.manifest)
    if keeps_all(select):
        return {DENSE: everything}
    return {DENSE: everything, PRUNED: select}


def _bundle(path: Path, manifest: Manifest) -> ProfiledBundle:
    quantised = manifest.quantisation
    weights = f", {quantised.weights} weights" if quantised else ""
    files = dict.fromkeys(name for stage in manifest.stages for name in stage.data)
    return ProfiledBundle(
        path.resolve().name,
        graphs_hash(manifest),
        f"{manifest.hidden_dtype}{weights}",
        manifest.text.layers,
        sum(manifest.files[name].bytes for name in files),
    )


def _clock_seconds() -> float:
    """What one reading of the clock takes."""
    began = perf_counter()
    for _ in range(_CLOCK_READINGS):
        perf_counter()
    return (perf_counter() - began) / _CLOCK_READINGS
