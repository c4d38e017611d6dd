"""What a format is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document
from atp_runtime.evaluation.question import Question

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
"""What LLaVA-1.5 was trained to see behind such questions (arXiv 2310.03744)."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read the data.

    Attributes:
        images: The folder of the images; None looks where downloads have it.
        annotations: The file with the answers, of formats that keep them apart.
        split: Which part of the data, of formats that have several in one file.
        circular: Whether questions count only if they are answered right with their options
            in every order, of data that has such orders.
    """

    images: Path | None = None
    annotations: Path | None = None
    split: str | None = None
    circular: bool = True


@dataclass(frozen=True)
class Dataset:
    """The questions of a benchmark.

    Attributes:
        questions: In the order of the data.
        files: What they were read from.
    """

    questions: tuple[Question, ...]
    files: tuple[Path, ...]


Submit = Callable[[Document, Mapping[str, str]], str]
"""The text of a file that the benchmark's server takes, from what was read by question id."""


@dataclass(frozen=True)
class Format:
    """A benchmark's format.

    Attributes:
        name: As users name it.
        title: As its authors do.
        metric: What its score is called.
        suffix: The line behind each prompt; "" for none.
        recognises: Whether a document is of this format.
        read: Reads its questions; raises `InputError` where the data is malformed.
        takes: The options of `ReadOptions`, besides `images`, that mean something for it.
        submission: Name and text of the file to submit where the answers are not public.
    """

    name: str
    title: str
    metric: str
    suffix: str
    recognises: Callable[[Document], bool]
    read: Callable[[Document, ReadOptions], Dataset]
    takes: frozenset[str] = frozenset()
    submission: tuple[str, Submit] | None = None


def with_options(question: str, options: tuple[str, ...]) -> str:
    """A question and its options, a line each: `A. first`."""
    lettered = (f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(options))
    return "\n".join([question, *lettered])


def check_letter(letter: str, options: tuple[str, ...], name: str) -> str:
    """The letter of the right option.

    Args:
        letter: As the data has it.
        options: All of them.
        name: The record, for the message.

    Raises:
        InputError: There is no such option.
    """
    if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(options):
        return letter
    raise InputError(
        f"{name}: the answer is {letter!r}, of {len(options)} options",
        why="it must be the letter of one of them.",
        fix="download the file again.",
    )
