"""Finds the format of a benchmark's files and reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import Document
from atp_runtime.evaluation.formats import (
    gqa,
    llava,
    mmbench,
    pope,
    scienceqa,
    seedbench,
    textvqa,
    vqav2,
)
from atp_runtime.evaluation.formats.format import Dataset, Format, ReadOptions

FORMATS: Mapping[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (llava, vqav2, textvqa, gqa, pope, scienceqa, mmbench, seedbench)
}


def find_format(document: Document, name: str | None) -> Format:
    """The format of that name, or else the one that recognises the document.

    Raises:
        InputError: There is none, or the document is not of it.
    """
    if name is None:
        found = [it for it in FORMATS.values() if it.recognises(document)]
        if found:
            return found[0]
        raise InputError(
            f"{document.path} is of no known format",
            why=f"the known ones are {', '.join(FORMATS)}; docs/evaluation.md says what they hold.",
            fix="name the file with the questions, as its benchmark publishes it.",
        )
    if FORMATS[name].recognises(document):
        return FORMATS[name]
    raise InputError(
        f"{document.path} is not of the format {name}",
        why="the fields that its questions have are missing.",
        fix="leave --format away, or see docs/evaluation.md for the files it takes.",
    )


def read_dataset(document: Document, format_: Format, options: ReadOptions) -> Dataset:
    """The questions of a document.

    Raises:
        InputError: A record is malformed, two have the same id, there is none, or an option
            means nothing for the format.
    """
    defaults = ReadOptions()
    for option in ("annotations", "split", "circular"):
        given = getattr(options, option) != getattr(defaults, option)
        if given and option not in format_.takes:
            raise InputError(
                f"--{'no-' if option == 'circular' else ''}{option} with {format_.title}",
                why="its files have no such thing.",
                fix="leave the option away.",
            )
    dataset = format_.read(document, options)
    if not dataset.questions:
        raise InputError(
            f"{document.path}: no question about an image",
            why="there is nothing to ask.",
            fix="check that it is the right file, and split.",
        )
    name, count = Counter(it.id for it in dataset.questions).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{document.path}: {count} questions have the id {name!r}",
            why="answers are told apart by it.",
            fix="give every record an id of its own.",
        )
    return dataset
