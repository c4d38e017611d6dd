"""How good the samples' answers are, pruned one way or another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from atp_calibration.budget.dials import Weights
from atp_calibration.budget.passes import Told
from atp_calibration.budget.prompts import Prompts
from atp_calibration.samples import Sample
from atp_runtime.evaluation.intervals import Estimate, mean_score
from atp_runtime.evaluation.json_files import write_whole
from atp_runtime.evaluation.keys.exact_match import normalised
from atp_runtime.generation import GenerationOptions
from atp_runtime.manifest import Manifest
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.schema import to_json
from atp_runtime.selection import Selectors

_LONGEST = 32  # tokens, as atp-eval has it
_BLOCK = 16  # answers between two writes


def unpruned_points(manifest: Manifest) -> tuple[PruningPoint, ...]:
    """The bundle's points with a rule that drops nothing."""
    points = [stage.pruning for stage in manifest.segments if stage.pruning]
    return tuple(PruningPoint(point.before_layer, "keep_all", {}) for point in points)


class Scoring:
    """Asks the samples and marks the answers; answers are filed, and asked for once.

    Where the data has no answers, those of the unpruned model count as right.

    Args:
        prompts: Runs the samples.
        samples: At least one.
        weights: The bundle's ATP modules.
        directory: Where answers are filed.
        told: How far it is.

    Attributes:
        has_truth: Whether the data has answers.
    """

    def __init__(
        self,
        prompts: Prompts,
        samples: Sequence[Sample],
        weights: Weights,
        directory: Path,
        told: Told,
    ) -> None:
        self._prompts = prompts
        self._samples = samples
        self._weights = weights
        self._directory = directory
        self._told = told
        self.has_truth = all(it.question.key.truth is not None for it in samples)

    def of(self, points: Sequence[PruningPoint]) -> Estimate:
        """The mean score with these points, with its 95 % interval.

        Raises:
            CheckFailedError: Scores or logits are not finite.
        """
        answers = self._answers(points)
        if self.has_truth:
            marked = zip(self._samples, answers, strict=True)
            return mean_score([it.question.key.mark(text).score or 0.0 for it, text in marked])
        right = self._answers(unpruned_points(self._prompts.session.model.manifest))
        pairs = zip(answers, right, strict=True)
        return mean_score([float(normalised(found) == normalised(it)) for found, it in pairs])

    def _answers(self, points: Sequence[PruningPoint]) -> list[str]:
        key = hashlib.sha256(json.dumps(to_json([*points])).encode()).hexdigest()[:16]
        path = self._directory / f"answers-{key}.json"
        answers = _read(path)
        session, own = self._prompts.session, self._prompts.session.model.select
        session.model.select = Selectors(points, self._weights)
        try:
            for sample in self._samples[len(answers) :]:
                photos, options = self._prompts.photos(sample), GenerationOptions(_LONGEST)
                answers.append(session.ask(sample.prompt, photos, options).text)
                if len(answers) % _BLOCK == 0 or len(answers) == len(self._samples):
                    _write(path, answers)
                self._told("answers for the curve", len(answers), len(self._samples))
        finally:
            session.model.select = own
        return answers


def _read(path: Path) -> list[str]:
    """Answers of a former run; none if there are none, or the disk damaged them."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(map(str, answers)) if isinstance(answers, list) else []


def _write(path: Path, answers: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(answers) + "\n")
