"""The images and prompts that a bundle learns from: any data that `atp-eval` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from atp_runtime.errors import AtpError, InputError
from atp_runtime.evaluation.data_file import Document, sha256
from atp_runtime.evaluation.draw import by_image, draw
from atp_runtime.evaluation.formats.format import ReadOptions
from atp_runtime.evaluation.formats.registry import find_format, read_dataset
from atp_runtime.evaluation.question import ImageReference, Question, opened
from atp_runtime.images import load_image

LEAST = 2
"""What one sample has in common with the next is what calibration is after."""


@dataclass(frozen=True)
class Sample:
    """A prompt about images.

    Attributes:
        question: Where it comes from; its key marks answers.
        prompt: What is asked, with the line that its benchmark has behind each question.
    """

    question: Question
    prompt: str

    def images(self) -> list[Path | Image.Image]:
        """What `Session.ask` takes; images inside the data are decoded as far as their header."""
        return self.question.sources()


@dataclass(frozen=True)
class SkippedSample:
    """A question that cannot be a sample, by its id, and why."""

    id: str
    problem: str


@dataclass(frozen=True)
class Samples:
    """What was drawn from the data.

    Attributes:
        data: The file or directory.
        seed: Of the drawing.
        samples: At least `LEAST`; those about the same images follow one another.
        skipped: Those that were drawn, too, and whose image cannot be read.
        fingerprint: SHA-256 of each file of the data, by name.
    """

    data: Path
    seed: int
    samples: tuple[Sample, ...]
    skipped: tuple[SkippedSample, ...]
    fingerprint: dict[str, str] = field(hash=False)

    def __len__(self) -> int:
        return len(self.samples)


def read_samples(
    data: Path,
    limit: int | None = None,
    seed: int = 0,
    *,
    format_name: str | None = None,
    read: ReadOptions | None = None,
) -> Samples:
    """Draws samples at random; for one whose image cannot be read, another is drawn.

    Every image is decoded once, so that nothing breaks in the middle of hours of work.

    Args:
        data: A benchmark's file or directory, see docs/evaluation.md.
        limit: How many samples; None is all.
        seed: Another one draws others. With the same one, more samples are these and others.
        format_name: Of the data; None finds out.
        read: How to read it.

    Raises:
        InputError: The data cannot be read, or fewer than `LEAST` samples are left.
    """
    document = Document.read(data)
    format_ = find_format(document, format_name)
    dataset = read_dataset(document, format_, read or ReadOptions())
    asked = [question for question in dataset.questions if question.images]
    drawn, skipped = _draw_readable(asked, limit, seed)
    if len(drawn) < LEAST:
        raise _too_few(data, len(drawn), skipped, limit)
    samples = tuple(Sample(question, question.text(format_.suffix)) for question in by_image(drawn))
    hashes = {path.name: sha256(path) for path in dataset.files}
    return Samples(data, seed, samples, tuple(skipped), hashes)


def _draw_readable(
    questions: Sequence[Question], limit: int | None, seed: int
) -> tuple[list[Question], list[SkippedSample]]:
    problems: dict[ImageReference, str | None] = {}
    wanted = limit
    while True:
        drawn = draw(questions, wanted, seed)
        readable, skipped = [], []
        for question in drawn:
            problem = _problem(question, problems)
            if problem is None:
                readable.append(question)
            else:
                skipped.append(SkippedSample(question.id, problem))
        # Orders of one question's options are drawn together, so there may be more than asked for.
        if limit is None or len(readable) >= limit or len(drawn) == len(questions):
            return readable[:limit], skipped
        wanted = limit + len(skipped)


def _problem(question: Question, known: dict[ImageReference, str | None]) -> str | None:
    """What is wrong with the first bad image of a question; images are looked at once."""
    for image in question.images:
        if image not in known:
            known[image] = _decode(image)
        if known[image]:
            return known[image]
    return None


def _decode(image: ImageReference) -> str | None:
    try:
        load_image(opened(image))
    except AtpError as error:
        return error.what
    return None


def _too_few(
    data: Path, found: int, skipped: Sequence[SkippedSample], limit: int | None
) -> InputError:
    if limit is not None and limit < LEAST:
        return InputError(
            f"{limit} sample(s)",
            why="what is learned from a single picture holds for that picture.",
            fix=f"take at least {LEAST}; 128 are usual.",
        )
    first = f"; the first: {skipped[0].problem}" if skipped else ""
    return InputError(
        f"{data}: {found} usable sample(s), {len(skipped)} skipped{first}",
        why=f"at least {LEAST} questions with readable images are needed to learn from.",
        fix="name the folder of the images with --images, or give more data.",
    )
