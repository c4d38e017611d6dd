"""Runs the samples through a bundle once and gathers what enters its linear layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from atp_calibration.progress import Progress
from atp_calibration.quantisation.ranges import RangeBackend
from atp_calibration.quantisation.statistics_file import (
    Statistics,
    read_statistics,
    spreads,
    write_statistics,
)
from atp_calibration.samples import LEAST, Sample
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.selection import Selectors
from atp_runtime.session import Session

COMPARED = 8
"""Samples that are also run with nothing pruned, to compare."""
NEW_TOKENS = 8
"""Of each answer: decoding has other activations than the prompt, and far fewer."""
_PAUSE = 60.0  # seconds between two writes of what was seen


def observe(
    bundle: Bundle,
    samples: Sequence[Sample],
    backend: RangeBackend,
    file: Path,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> Statistics:
    """What enters the linear layers, on all samples; goes on where the file ends.

    Args:
        bundle: An opened one.
        samples: At least `LEAST`.
        backend: A new one; it runs the bundle.
        file: Keeps what was seen so far.
        progress: Told about every sample.
        clock: Seconds.

    Raises:
        InputError: The bundle cannot be used, or hardly any sample fits the model's positions.
        CheckFailedError: NaN or infinity enters a layer; the message names it.
        MachineError: Memory does not suffice.
    """
    statistics = read_statistics(file)
    if statistics.done < len(samples):
        backend.seen, backend.runs = statistics.seen, statistics.runs
        with Session(bundle, backend) as session:
            _Pass(session, backend, statistics, samples).run(file, progress, clock)
    if len(samples) - len(statistics.too_long) < LEAST:
        raise InputError(
            f"{len(statistics.too_long)} of {len(samples)} samples are too long",
            why="the model has not the positions for them, so nothing was seen.",
            fix="take data with shorter prompts or fewer images each.",
        )
    return statistics


class _Pass:
    def __init__(
        self,
        session: Session,
        backend: RangeBackend,
        statistics: Statistics,
        samples: Sequence[Sample],
    ) -> None:
        self._session = session
        self._backend = backend
        self._statistics = statistics
        self._samples = samples

    def run(self, file: Path, progress: Progress, clock: Callable[[], float]) -> None:
        statistics, samples = self._statistics, self._samples
        progress.begin("samples", len(samples), statistics.done)
        written = clock()
        for sample in samples[statistics.done :]:
            self._ask(sample)
            statistics.done += 1
            if statistics.done == min(COMPARED, len(samples)):
                self._compare(samples[: statistics.done])
            statistics.runs = self._backend.runs
            # Only between two samples: a part of one would be counted twice.
            if statistics.done == len(samples) or clock() - written >= _PAUSE:
                write_statistics(file, statistics)
                written = clock()
            progress.step()

    def _ask(self, sample: Sample) -> None:
        try:
            options = GenerationOptions(max_new_tokens=NEW_TOKENS)
            self._session.ask(sample.prompt, sample.images(), options)
        except InputError as error:
            if "tokens" not in error.what:
                raise
            self._statistics.too_long.append(sample.question.id)

    def _compare(self, samples: Sequence[Sample]) -> None:
        """Runs the same samples with nothing pruned, beside what is gathered."""
        model, backend = self._session.model, self._backend
        if not any(stage.pruning for stage in model.manifest.segments):
            return
        self._statistics.pruned = spreads(self._statistics.seen)
        own, model.select = model.select, Selectors.keeping_all(model.manifest)
        backend.seen, backend.remembers = {}, False
        try:
            for sample in samples:
                if sample.question.id not in self._statistics.too_long:
                    self._ask(sample)
            self._statistics.unpruned = spreads(backend.seen)
        finally:
            backend.seen, backend.remembers, model.select = self._statistics.seen, True, own
