"""The stages of the demo's training, each on what the one before left.

Most are runs of `atp-train`; others teach scorers, see `scorer_lessons`, or cut ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_models.demo.curriculum.methods import (
    Cut,
    Dense,
    Dropped,
    Fit,
    Method,
    Options,
    Scorers,
    Soft,
)
from atp_models.demo.scenes.captions import CAPTIONS

# Sets of `atp_models.demo.data`, written to directories of their names.
SCENES, EASY, VALIDATION = "scenes-train", "easy-vqa-train", "scenes-validation"
EASY_IMAGES = 1200
"""Of easy-VQA's 4,000; each has about ten questions."""
SEED = 0
SPLIT = 0
"""Of the scenes to train on, see `make_scene`."""
_VALIDATION = 96  # questions: each costs a second on a CPU


@dataclass(frozen=True)
class Stage:
    """One run of `atp-train`, `teach_scorers` or `cut_to_rank`.

    Attributes:
        name: Of the directory it makes.
        method: How it learns.
        steps: Of the optimiser; a fit has none.
        rows: Per step; what a row is, the method tells.
        most_pictures: Scenes with more pictures come later: what "the dog" and "at the top"
            mean is learnt where little else could be meant.
        easy_vqa: Whether easy-VQA's questions are asked, too.
        captions: Whether scenes are described, too. Captions have most of the tokens that are
            learnt, but nobody asks for them.
        seed: Of the order of the images: a stage that goes on with the same ones takes another.
    """

    name: str
    method: Method | Scorers | Cut
    steps: int
    rows: int
    most_pictures: int = 12
    easy_vqa: bool = False
    captions: bool = True
    seed: int = SEED

    def arguments(self, checkpoint: Path, data: Path, work: Path) -> list[str]:
        """What `atp-train` is told.

        Args:
            checkpoint: To begin with.
            data: See `write_stage_data`.
            work: Holds the data sets and gets the result, `work / name`.

        Raises:
            TypeError: The stage is no run of `atp-train`.
        """
        if isinstance(self.method, Scorers | Cut):
            raise TypeError(f"stage {self.name} is no run of atp-train")
        how: Options = {
            "--seed": self.seed,
            "--validation-data": work / "validation.json",
            "--validation-limit": _VALIDATION,
            "--images": work,
            "--cache-features": work / "features",
            **self.method.options(self.steps, self.rows),
        }
        words = [str(checkpoint), str(data), str(work / self.name)]
        for name, value in how.items():
            words += [name] if value is True else [name, str(value)]
        return words


_GRIDS = (1, 2, 3)

STAGES = (
    Stage("1-few-pictures", Dense(1.5e-3, (2,)), steps=90, rows=5, most_pictures=3),
    Stage("2-more-pictures", Dense(1.2e-3, (2,)), steps=110, rows=5, most_pictures=6),
    Stage("3-all-pictures", Dense(1e-3, _GRIDS), steps=100, rows=5, easy_vqa=True),
    Stage("4-longer", Dense(1e-3, _GRIDS), steps=480, rows=5, easy_vqa=True),
    Stage("5-more", Dense(5e-4, _GRIDS), steps=280, rows=5, easy_vqa=True, seed=1),
    Stage("6-scorers", Scorers(0.3), steps=150, rows=4),
    Stage("7-thresholds", Fit(target_tokens=144), steps=0, rows=96),
    Stage("8-pruned-grids", Soft(3e-4, 141, (2,)), steps=120, rows=8, seed=2),
    Stage("9-pruned", Soft(2e-4, 141, lambda_target=2.0), steps=40, rows=4, seed=3),
    Stage("10-places", Dense(5e-4, (1, 2)), steps=130, rows=5, easy_vqa=True, seed=4),
    Stage("11-scorers", Scorers(1.0), steps=80, rows=4),
    Stage("12-thresholds", Fit(keep=(145, 50, 30)), steps=0, rows=64),
    Stage("13-dropped", Dropped(3e-4), steps=250, rows=3, captions=False, seed=5),
    Stage("14-thresholds", Fit(keep=(140, 48, 30)), steps=0, rows=128),
    Stage("15-cut", Cut(40), steps=0, rows=0),
    Stage("16-both", Dropped(4e-4, unpruned=0.5), steps=400, rows=4, captions=False, seed=6),
    Stage("17-thresholds", Fit(keep=(140, 48, 30)), steps=0, rows=128),
)


def write_stage_data(stage: Stage, work: Path) -> Path:
    """Writes the records that a stage learns from, `work / name.json`.

    Args:
        stage: The stage.
        work: Holds the data sets.
    """
    chosen = [r for r in _records(work, SCENES) if r["objects"] <= stage.most_pictures]
    if not stage.captions:
        chosen = [record for record in chosen if record["kind"] not in CAPTIONS]
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
