"""Times the answers of several bundles in rounds: a machine that slows down does so for all.

Only one bundle is loaded at a time: several of a large model would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atp_runtime.errors import InputError
from atp_runtime.manifest import Manifest
from atp_runtime.profiling.aggregate import span_work
from atp_runtime.profiling.measure import RunBy
from atp_runtime.profiling.timed_turn import DECODE, Question, TimedTurn, TurnTimer
from atp_runtime.session import Session
from atp_runtime.statistics import cached_bytes

Told = Callable[[int, int], None]
"""Told the loads of bundles that are done and those there will be."""


@dataclass(frozen=True)
class TimingPlan:
    """How answers are timed.

    Attributes:
        questions: Asked in turn, in every round.
        rounds: How often each bundle has its turn; every other round goes backwards.
        new_tokens: Of each answer.
    """

    questions: tuple[Question, ...]
    rounds: int
    new_tokens: int

    def __post_init__(self) -> None:
        for name, value, least in (("rounds", self.rounds, 1), ("new tokens", self.new_tokens, 2)):
            if value < least:
                why = "there would be nothing to measure."
                raise InputError(f"{name} {value}", why=why, fix=f"choose {least} or more.")


@dataclass(frozen=True)
class Times:
    """What the answers of a bundle took.

    Attributes:
        first_token: Seconds from the question to the first token, of each answer.
        token: Seconds of each token after it, likewise.
        cache_bytes: Keys and values at the end of an answer, the mean.
        gflops: 1e9 operations up to the first token, the mean: vision, prefill and head.
    """

    first_token: tuple[float, ...]
    token: tuple[float, ...]
    cache_bytes: float
    gflops: float


def time_bundles(
    bundles: Mapping[str, Path], plan: TimingPlan, run_by: RunBy, told: Told
) -> dict[str, Times]:
    """Times the answers of every bundle.

    Args:
        bundles: Directories by name.
        plan: What is asked, and how often.
        run_by: What runs them.
        told: How far it is.

    Raises:
        InputError: A bundle or a question cannot be used.
        MachineError: Memory does not suffice, or a package or the GPU is missing.
    """
    measured: dict[str, list[_Answer]] = {name: [] for name in bundles}
    order = list(bundles)
    loads, total = 0, len(order) * plan.rounds
    for _ in range(plan.rounds):
        for name in order:
            measured[name] += _round(bundles[name], plan, run_by)
            loads += 1
            told(loads, total)
        order.reverse()
    return {name: _times(answers) for name, answers in measured.items()}


@dataclass(frozen=True)
class _Answer:
    first_token: float
    token: float
    cache_bytes: int
    operations: float


def _round(bundle: Path, plan: TimingPlan, run_by: RunBy) -> list[_Answer]:
    with Session.open(
        bundle, backend=run_by.backend, threads=run_by.threads, cuda_graphs=run_by.cuda_graphs
    ) as session:
        timer, manifest = TurnTimer(session.model, plan.new_tokens), session.model.manifest
        timer.run(plan.questions[0], session.model.select)  # warms up
        turns = [timer.run(question, session.model.select) for question in plan.questions]
    return [_answer(manifest, turn) for turn in turns]


def _answer(manifest: Manifest, turn: TimedTurn) -> _Answer:
    cached = sum(
        length * cached_bytes(manifest, stage)
        for length, stage in zip(turn.cached, manifest.segments, strict=True)
    )
    works = [
        (span.calls, span_work(manifest, span, span.calls))
        for span in turn.spans
        if span.phase != DECODE
    ]
    operations = sum(calls * work.operations for calls, work in works if work is not None)
    return _Answer(turn.first_token_seconds, turn.token_seconds or 0.0, cached, operations)


def _times(answers: Sequence[_Answer]) -> Times:
    return Times(
        tuple(it.first_token for it in answers),
        tuple(it.token for it in answers),
        float(np.mean([it.cache_bytes for it in answers])),
        float(np.mean([it.operations for it in answers])) / 1e9,
    )
