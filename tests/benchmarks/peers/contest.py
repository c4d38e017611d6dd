"""The rounds: everyone answers the same prompts by turns, each time in a new process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.peers.contestants import last_line

_MARK = "@@ "  # as in drivers/protocol.py, which other interpreters run
_LIMIT_SECONDS = 3600
_KILLED = -9


@dataclass(frozen=True)
class Case:
    """A prompt.

    Attributes:
        visual: Visual tokens in it, or left of them on average over all layers.
        text: Text tokens in it.
        ids: Token ids of what is run.
        keep: What stays after each pruning point; empty if nothing is pruned.
    """

    visual: int
    text: int
    ids: tuple[int, ...] = field(repr=False)
    keep: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Contestant:
    """A library with a model, in a precision; two are never equal.

    Attributes:
        name: Of the library.
        precision: One of `PRECISIONS`.
        command: Starts its driver.
        variables: Of the environment.
        artefact: What it loads.
        artefact_bytes: Of the decoder in there.
        cases: What it is asked, short ones first.
    """

    name: str
    precision: str
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(repr=False)
    artefact: str
    artefact_bytes: int
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Timed:
    """What a case took, once.

    Attributes:
        first_token: Seconds from the prompt to its first token.
        later: Seconds of each token after it.
        peak_bytes: Highest resident memory of the process so far.
    """

    first_token: float
    later: tuple[float, ...]
    peak_bytes: int


@dataclass(frozen=True)
class Answer:
    """What a driver said.

    Attributes:
        load_seconds: Until the model could be asked.
        versions: Of what it runs on.
        check: Tokens it answered to the prompt that all must answer alike.
        timed: Of its cases.
    """

    load_seconds: float
    versions: dict[str, str]
    check: tuple[int, ...]
    timed: tuple[Timed, ...]


class DriverError(Exception):
    """A driver ended without an answer; says why."""


@dataclass(frozen=True)
class Task:
    """What all contestants have in common.

    Attributes:
        threads: To run on.
        new_tokens: Of each answer.
        check: A prompt that all must answer alike.
        check_tokens: That many tokens.
    """

    threads: int
    new_tokens: int
    check: tuple[int, ...]
    check_tokens: int


def run_rounds(
    contestants: Sequence[Contestant],
    task: Task,
    rounds: int,
    told: Callable[[str], None],
) -> tuple[dict[Contestant, list[Answer]], dict[Contestant, str]]:
    """Answers of every round, by turns, and why a contestant has none.

    One that fails is not asked again; its earlier answers do not count.
    """
    answers: dict[Contestant, list[Answer]] = {contestant: [] for contestant in contestants}
    failed: dict[Contestant, str] = {}
    for number in range(rounds):
        for contestant in list(answers):
            told(f"round {number + 1} of {rounds}: {contestant.name}, {contestant.precision}")
            try:
                answers[contestant].append(ask(contestant, task))
            except DriverError as error:
                failed[contestant] = str(error)
                del answers[contestant]
    return answers, failed


def ask(contestant: Contestant, task: Task) -> Answer:
    """One round of one contestant.

    Raises:
        DriverError: It ended without an answer.
    """
    longest = max((len(case.ids) for case in contestant.cases), default=0)
    job = {
        "artefact": contestant.artefact,
        "precision": contestant.precision,
        "threads": task.threads,
        "capacity": max(longest + task.new_tokens, len(task.check) + task.check_tokens),
        "check": {"prompt": task.check, "tokens": task.check_tokens},
        "cases": [
            {"prompt": case.ids, "tokens": task.new_tokens, "keep": case.keep}
            for case in contestant.cases
        ],
    }
    try:
        done = subprocess.run(
            contestant.command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_LIMIT_SECONDS,
            env=dict(contestant.variables),
        )
    except subprocess.TimeoutExpired as error:
        raise DriverError(f"gave no answer within {_LIMIT_SECONDS} s") from error
    except OSError as error:
        raise DriverError(str(error)) from error
    if done.returncode:
        raise DriverError(reason(done.returncode, done.stderr))
    return read_answer(done.stdout)


def reason(code: int, errors: str) -> str:
    """Why a driver ended, from its exit code and what it said."""
    if code == _KILLED:
        return "was killed, as happens when memory is short"
    if code < 0:
        return f"crashed (signal {-code}): {last_line(errors)}"
    return last_line(errors)


def read_answer(output: str) -> Answer:
    """What a driver printed.

    Raises:
        DriverError: Part of the answer is missing.
    """
    found: dict[str, Any] = {}
    timed = []
    for line in _marked(output):
        if "case" in line:
            timed.append(Timed(line["first_token"], tuple(line["later"]), line["peak_bytes"]))
        else:
            found |= line
    try:
        return Answer(found["load_seconds"], found["versions"], tuple(found["check"]), tuple(timed))
    except KeyError as error:
        raise DriverError(f"its answer lacks {error}") from error


def agreeing(check: Sequence[int], reference: Sequence[int]) -> int:
    """How many tokens are those of the reference before the first that is not."""
    pairs = enumerate(zip(check, reference, strict=True))
    return next((number for number, (a, b) in pairs if a != b), len(reference))


def _marked(output: str) -> Iterator[dict[str, Any]]:
    for line in output.splitlines():
        # A library may have printed something without ending its line.
        _, mark, rest = line.partition(_MARK)
        if mark:
            yield json.loads(rest)
