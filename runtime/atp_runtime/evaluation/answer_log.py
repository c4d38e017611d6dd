"""`answers.jsonl`: one line per answered question, written as soon as it is answered.

A run that was stopped goes on behind the last whole line. `run.json` beside it says what was
asked of what, so that answers of different runs are never mixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from atp_runtime.errors import InputError, MachineError
from atp_runtime.evaluation.json_files import read_declared, read_lines, write_declared
from atp_runtime.schema import to_json

ANSWERS, RUN = "answers.jsonl", "run.json"
_START_AFRESH = "start afresh with --restart, or choose another directory with --output."


@dataclass(frozen=True)
class AnsweredQuestion:
    """What came of one question.

    Attributes:
        id: The question's.
        group: What it counts with; its id if it counts alone.
        kind: The question's.
        prompt: What was asked, the suffix included.
        images: Of each the path, or name.
        truth: The right answer, as the key tells it.
        answer: What the model said.
        read: What that was taken for; None for nothing.
        score: 0 to 1; None if the truth is not known.
        finish_reason: See `GeneratedText`; "failed" if the question could not be asked.
        visual_tokens: Of all its images, before pruning.
        mean_visual_tokens: Of these, averaged over all decoder layers.
        kept: Of these, behind each pruning point.
        image_run: Whether the decoder ran the image, which is so unless it could use what an
            earlier question about it left.
        seconds: Wall time by part: "preprocess", "vision", "prefill" and "total".
        numbers: The question's.
    """

    id: str
    group: str
    kind: str
    prompt: str
    images: tuple[str, ...]
    truth: str | None
    answer: str
    read: str | None
    score: float | None
    finish_reason: str
    visual_tokens: int
    mean_visual_tokens: float
    kept: tuple[int, ...]
    image_run: bool
    seconds: Mapping[str, float]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class DataFile:
    """A file the questions come from."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Run:
    """What makes two runs the same.

    Attributes:
        version: Of this program.
        bundle: SHA-256 of the bundle's manifest, which has the hashes of all its files.
        data: The files the questions come from.
        format: Theirs.
        split: Which part of the data; "" if it is not divided.
        circular: Whether options were rotated, where the data has that.
        limit: How many questions were drawn; None for all.
        seed: Of the drawing, and of random pruning.
        prompt_suffix: The line behind each question.
        max_new_tokens: Longest answer.
        select: The rule that pruned, "bundle" for the bundle's own.
        keep: Tokens it kept of an image behind each pruning point; empty if that is up to it.
        images: Whether the images were shown.
        backend: What ran the bundle; its arithmetic may decide a close call otherwise.
    """

    version: str
    bundle: str
    data: tuple[DataFile, ...]
    format: str
    split: str
    circular: bool
    limit: int | None
    seed: int
    prompt_suffix: str
    max_new_tokens: int
    select: str
    keep: tuple[int, ...]
    images: bool
    backend: str = "onnxruntime"


class AnswerLog:
    """The answers so far; `open_log` opens one.

    Attributes:
        answers: By question id.
    """

    def __init__(self, file: TextIO, answers: dict[str, AnsweredQuestion]) -> None:
        self._file = file
        self.answers = answers

    def add(self, answered: AnsweredQuestion) -> None:
        """Writes an answer; it is safe, except from a power cut, when this returns."""
        # In one go, so that Ctrl-C leaves a whole line or none.
        self._file.write(json.dumps(to_json(answered), ensure_ascii=False) + "\n")
        self._file.flush()
        self.answers[answered.id] = answered


@contextmanager
def open_log(directory: Path, run: Run, *, restart: bool) -> Iterator[AnswerLog]:
    """Opens the answers of a run, those of an earlier start included.

    Args:
        directory: Made if it is not there.
        run: What is asked of what.
        restart: Drop what is there.

    Raises:
        InputError: The directory has the answers of another run, or none of ours.
        MachineError: Another process writes to them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    answers = directory / ANSWERS
    with answers.open("a", encoding="utf-8") as file:
        _lock(file, answers)
        if restart:
            file.truncate(0)
        else:
            _check_same(directory / RUN, run, empty=not answers.stat().st_size)
        write_declared(directory / RUN, run)
        file.truncate(_whole_lines(answers))
        yield AnswerLog(file, {it.id: it for it in read_answers(directory)})


def read_answers(directory: Path) -> list[AnsweredQuestion]:
    """The answers of a run.

    Raises:
        InputError: They are not there, or a line is malformed.
    """
    path = directory / ANSWERS
    return read_lines(AnsweredQuestion, path, fix="run atp-eval again with --restart.")


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line: a machine that lost power may leave a part."""
    return path.read_bytes().rfind(b"\n") + 1


def _check_same(path: Path, run: Run, *, empty: bool) -> None:
    if not path.is_file():
        if empty:
            return
        raise InputError(
            f"{path.parent} has {ANSWERS} but no {RUN}",
            why="nothing says what those answers were given to.",
            fix=_START_AFRESH,
        )
    before = read_declared(Run, path, fix=_START_AFRESH)
    values = [(name, getattr(before, name), getattr(run, name)) for name in vars(run)]
    changed = [
        f"{name} {_shown(then)}, now {_shown(now)}" for name, then, now in values if then != now
    ]
    if changed and not empty:
        raise InputError(
            f"{path.parent} has the answers of another run",
            why="that had " + "; ".join(changed) + ".",
            fix=_START_AFRESH,
        )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, DataFile):
        return f"{value.name} {value.sha256[:12]}"
    return repr(value)[:40]


def _lock(file: TextIO, path: Path) -> None:
    try:
        import fcntl  # noqa: PLC0415 - Unix only
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise MachineError(
            f"{path} is in use by another process ({os.strerror(error.errno or 0)})",
            why="two runs that write to it would mix their answers.",
            fix="wait for the other one, or choose another directory with --output.",
        ) from error
