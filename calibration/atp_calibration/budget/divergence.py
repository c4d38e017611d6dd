"""How far pruning moves what the model is about to say, without knowing what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atp_calibration.budget.prompts import Prompts
from atp_calibration.samples import Sample
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import FloatArray, Selectors


class FirstTokenDivergence:
    """The mean Kullback-Leibler divergence of first tokens from the unpruned model's.

    Args:
        prompts: Runs the samples.
        samples: At least one.
        layers: Of the bundle's pruning points.
        directory: Where the unpruned model's logits are filed.
    """

    def __init__(
        self, prompts: Prompts, samples: Sequence[Sample], layers: Sequence[int], directory: Path
    ) -> None:
        self._prompts = prompts
        self._samples = samples
        self._unpruned = Selectors([PruningPoint(it, "keep_all", {}) for it in layers], {})
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def __call__(self, points: Sequence[PruningPoint]) -> float:
        """In nats, 0 where nothing changes.

        Args:
            points: Top-k rules, one per pruning point.
        """
        selectors = Selectors(points, {})
        divergences = []
        for number, sample in enumerate(self._samples):
            expected = _log_softmax(self._reference(number, sample))
            found = _log_softmax(self._prompts.prefill(sample, selectors).result.logits)
            divergences.append(float(np.sum(np.exp(expected) * (expected - found))))
        return float(np.mean(divergences))

    def _reference(self, number: int, sample: Sample) -> FloatArray:
        path = self._directory / f"{number}.npy"
        if not path.is_file():
            written = path.with_name(path.name + ".new")
            with written.open("wb") as file:
                np.save(file, self._prompts.prefill(sample, self._unpruned).result.logits)
            written.replace(path)
        logits: FloatArray = np.load(path)
        return logits


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()))
