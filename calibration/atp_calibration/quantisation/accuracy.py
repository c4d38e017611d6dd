"""Asks a bundle the samples and marks its answers."""

from __future__ import annotations

from collections.abc import Sequence

from atp_calibration.progress import Progress
from atp_calibration.samples import Sample
from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

_LONGEST_ANSWER = 32


def accuracy(
    bundle: Bundle, samples: Sequence[Sample], progress: Progress, threads: int | None
) -> float:
    """The mean score of the answers, in points of 100.

    Raises:
        InputError: The right answers are not known.
    """
    options = GenerationOptions(max_new_tokens=_LONGEST_ANSWER)
    scores = []
    progress.begin("answers", len(samples))
    with Session(bundle, open_backend(threads=threads)) as session:
        for sample in samples:
            answer = session.ask(sample.prompt, sample.images(), options)
            score = sample.question.key.mark(answer.text).score
            if score is None:
                raise InputError(
                    f"the right answer to {sample.question.id} is not known",
                    why="--max-accuracy-drop marks the answers to the samples.",
                    fix="give data with answers, or use --keep-high-precision.",
                )
            scores.append(score)
            progress.step()
    return 100 * sum(scores) / len(scores)
