"""Records what the samples' visual tokens score at a pruning point, sample by sample.

What a later point sees depends on what earlier ones keep, so the scores of a point are filed under
the parameters of those before it. A file that is there is not computed again: an interrupted fit
goes on where it stopped by being run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from atp_calibration.budget.cost import Size
from atp_calibration.budget.prompts import Prompts
from atp_calibration.samples import Sample
from atp_runtime.atp import AtpWeights
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.schema import to_json
from atp_runtime.selection import FloatArray, IndexArray, Selection, Selectors, VisualTokens

Told = Callable[[str, int, int], None]
"""Told what is being done, how many samples are done and how many there are."""


@dataclass(frozen=True, eq=False)
class PointScores:
    """What a pruning point sees of one sample.

    Attributes:
        own: `scores.self` of the visual tokens, float32 [n].
        cross: `scores.cross`, likewise.
        has_text: Whether text follows them.
        image: int64 [n]: the image each belongs to.
        row: int64 [n]: the row of its patch.
        column: int64 [n], likewise.
        size: The sample's.
    """

    own: FloatArray
    cross: FloatArray
    has_text: bool
    image: IndexArray
    row: IndexArray
    column: IndexArray
    size: Size

    def visual(self) -> VisualTokens:
        """The tokens as a sequence of their own."""
        return VisualTokens(np.arange(len(self.own)), self.image, self.row, self.column)


class _RecordedError(Exception):
    """The scores that were asked for are there; what comes behind them need not be run."""

    def __init__(self, scores: PointScores) -> None:
        super().__init__()
        self.scores = scores


class Passes:
    """Scores of all samples at any point.

    Args:
        prompts: Runs the samples.
        samples: At least one.
        weights: The bundle's ATP modules.
        directory: Where scores are filed.
        told: How far a pass is.
    """

    def __init__(
        self,
        prompts: Prompts,
        samples: Sequence[Sample],
        weights: Mapping[str, AtpWeights],
        directory: Path,
        told: Told,
    ) -> None:
        self._prompts = prompts
        self._samples = samples
        self._weights = weights
        self._directory = directory
        self._told = told

    def scores(self, before: Sequence[PruningPoint], layer: int) -> list[PointScores]:
        """What the point before `layer` sees of each sample.

        Args:
            before: The points that come earlier, with the parameters to run them with.
            layer: The point's.

        Raises:
            CheckFailedError: Scores are not finite.
        """
        key = hashlib.sha256(json.dumps(to_json([*before, layer])).encode()).hexdigest()[:16]
        directory = self._directory / f"scores-{key}"
        directory.mkdir(parents=True, exist_ok=True)
        selectors = Selectors(before, self._weights)
        found = []
        for number, sample in enumerate(self._samples):
            path = directory / f"{number}.npz"
            scores = _read(path)
            if scores is None:
                scores = self._record(sample, selectors, layer)
                _write(path, scores)
            found.append(scores)
            self._told(f"scores before layer {layer}", number + 1, len(self._samples))
        return found

    def _record(self, sample: Sample, selectors: Selectors, layer: int) -> PointScores:
        def select(
            point: PruningPoint,
            scores_self: FloatArray,
            scores_cross: FloatArray,
            has_text: bool,
            visual: VisualTokens,
        ) -> Selection:
            if point.before_layer < layer:
                return selectors(point, scores_self, scores_cross, has_text, visual)
            own, cross = scores_self[visual.index], scores_cross[visual.index]
            size = Size(len(sample.question.images), len(scores_self) - len(visual))
            places = visual.image, visual.row, visual.column
            raise _RecordedError(PointScores(own, cross, has_text, *places, size))

        try:
            self._prompts.prefill(sample, select)
        except _RecordedError as recorded:
            return recorded.scores
        raise ValueError(f"no pruning point before layer {layer}")


def _write(path: Path, scores: PointScores) -> None:
    written = path.with_name(path.name + ".new")
    numbers = np.array([scores.has_text, scores.size.images, scores.size.text])
    try:
        with written.open("wb") as file:
            np.savez(
                file,
                own=scores.own,
                cross=scores.cross,
                image=scores.image,
                row=scores.row,
                column=scores.column,
                numbers=numbers,
            )
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def _read(path: Path) -> PointScores | None:
    """A former run's; None if there is none, or the disk damaged it."""
    try:
        with np.load(path) as held:
            has_text, images, text = (int(number) for number in held["numbers"])
            arrays = {name: held[name] for name in ("own", "cross", "image", "row", "column")}
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
    return PointScores(**arrays, has_text=bool(has_text), size=Size(images, text))
