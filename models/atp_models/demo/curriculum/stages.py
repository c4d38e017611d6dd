"""The stages of the demo's training, each on what the one before left.

All are runs of `atp-train` but one, which teaches scorers; see `scorer_lessons`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Sets of `atp_models.demo.data`, written to directories of their names.
SCENES, EASY, VALIDATION = "scenes-train", "easy-vqa-train", "scenes-validation"
EASY_IMAGES = 1200
"""Of easy-VQA's 4,000; each has about ten questions."""
SEED = 0
SPLIT = 0
"""Of the scenes to train on, see `make_scene`."""
_PACK = 64  # more than any image has questions
_VALIDATION = 96  # questions: each costs a second on a CPU
_MODULES_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Stage:
    """One run of `atp-train`, or of `teach_scorers`, which asks for less.

    Attributes:
        name: Of the directory it makes.
        most_pictures: Scenes with more pictures come later: what "the dog" and "at the top"
            mean is learnt where little else could be meant.
        easy_vqa: Whether easy-VQA's questions are asked, too.
        steps: Of the optimiser; 0 fits thresholds to samples, without gradients.
        rows: Per step; an image with all its questions in dense training, else a question.
            A fit looks at this many samples.
        learning_rate: Of LoRA and projector.
        strides: Of the grids of visual tokens that enter; an image draws one.
        target_tokens: Visual tokens averaged over all layers; None trains without pruning.
        seed: Of the order of the images: a stage that goes on with the same ones takes another.
        lambda_target: Weight of the distance to the target.
    """

    name: str
    most_pictures: int
    easy_vqa: bool
    steps: int
    rows: int
    learning_rate: float = 0.0
    strides: tuple[int, ...] = (1,)
    target_tokens: int | None = None
    seed: int = SEED
    lambda_target: float = 0.2

    def arguments(self, checkpoint: Path, data: Path, work: Path) -> list[str]:
        """What `atp-train` is told.

        Args:
            checkpoint: To begin with.
            data: See `write_stage_data`.
            work: Holds the data sets and gets the result, `work / name`.
        """
        how = {
            "--seed": self.seed,
            "--validation-data": work / "validation.json",
            "--validation-limit": _VALIDATION,
            "--images": work,
            "--cache-features": work / "features",
            **(self._learning() if self.steps else {"--samples": self.rows}),
        }
        if self.target_tokens is not None:
            how |= {"--target-tokens": self.target_tokens}
        options = [word for name, value in how.items() for word in (name, str(value))]
        kind = [] if self.steps else ["--fit-thresholds"]
        kind += ["--dense"] if self.target_tokens is None else []
        return [str(checkpoint), str(data), str(work / self.name), *options, *kind]

    def _learning(self) -> dict[str, object]:
        how: dict[str, object] = {
            "--mode": "lora",
            "--learning-rate": self.learning_rate,
            "--max-steps": self.steps,
            "--visual-tokens-stride": ",".join(map(str, self.strides)),
        }
        if self.target_tokens is None:
            # One by one: packed rows differ in length, and alone they need no mask.
            return how | {"--batch-size": 1, "--accumulate": self.rows, "--pack": _PACK}
        # Together: the batch's mean is to meet the target, not each prompt alone.
        return how | {
            "--batch-size": self.rows,
            "--lambda-atp": 0.01,
            "--lambda-target": self.lambda_target,
            "--modules-learning-rate": _MODULES_LEARNING_RATE,
        }


DENSE = (
    Stage("1-few-pictures", 3, False, steps=90, rows=5, learning_rate=1.5e-3, strides=(2,)),
    Stage("2-more-pictures", 6, False, steps=110, rows=5, learning_rate=1.2e-3, strides=(2,)),
    Stage("3-all-pictures", 12, True, steps=100, rows=5, learning_rate=1e-3, strides=(1, 2, 3)),
    Stage("4-longer", 12, True, steps=480, rows=5, learning_rate=1e-3, strides=(1, 2, 3)),
    Stage("5-more", 12, True, steps=280, rows=5, learning_rate=5e-4, strides=(1, 2, 3), seed=1),
)
SCORERS = Stage("6-scorers", 12, False, steps=150, rows=4)
PRUNED = (
    Stage("7-thresholds", 12, False, steps=0, rows=96, target_tokens=144),
    Stage(
        "8-pruned-grids",
        12,
        False,
        steps=120,
        rows=8,
        learning_rate=3e-4,
        strides=(2,),
        target_tokens=141,
        seed=2,
    ),
    Stage(
        "9-pruned",
        12,
        False,
        steps=40,
        rows=4,
        learning_rate=2e-4,
        target_tokens=141,
        seed=3,
        lambda_target=2.0,
    ),
)
STAGES = (*DENSE, SCORERS, *PRUNED)


def write_stage_data(stage: Stage, work: Path) -> Path:
    """Writes the records that a stage learns from, `work / name.json`.

    Args:
        stage: The stage.
        work: Holds the data sets.
    """
    chosen = [r for r in _records(work, SCENES) if r["objects"] <= stage.most_pictures]
    if stage.easy_vqa:
        chosen += _records(work, EASY)
    return _write(work / f"{stage.name}.json", chosen)


def write_validation_data(work: Path) -> Path:
    """Writes the records that every stage is validated with, `work / "validation.json"`."""
    return _write(work / "validation.json", list(_records(work, VALIDATION)))


def _records(work: Path, name: str) -> Iterator[dict[str, Any]]:
    """A set's records, their image paths beginning at `work`."""
    records = json.loads((work / name / f"{name}.json").read_text(encoding="utf-8"))
    for record in records:
        yield {**record, "image": f"{name}/{record['image']}"}


def _write(file: Path, records: list[dict[str, Any]]) -> Path:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(records), encoding="utf-8")
    partial.replace(file)
    return file
