"""Writing the demo's data sets, so that what is in their place is always whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atp_models.demo.data.baseline import question_only_baseline
from atp_models.demo.data.easy_vqa import EASY_VQA_SETS
from atp_models.demo.data.samples import IMAGES, Sample, Source, image_path, write_samples
from atp_models.demo.data.scene_sets import SCENE_SETS
from atp_models.demo.disk import disk_failures_explained
from atp_models.demo.fetching import fetch
from atp_models.demo.staging import put_in_place, refuse_foreign, staging
from atp_models.json_files import write_json
from atp_runtime.schema import to_json

SETS: dict[str, Source] = {**SCENE_SETS, **EASY_VQA_SETS}
CARD = "data_card.json"
BASELINE = "baseline.json"
# Raised whenever the steps would write something else from the same package.
_VERSION = 1
# The set whose questions a baseline may learn from.
_TRAINING_SET = {
    "scenes-validation": "scenes-train",
    "scenes-test": "scenes-train",
    "scenes-other-style": "scenes-train",
    "easy-vqa-test": "easy-vqa-train",
}
_PROGRESS = 10  # lines


def write_data_set(
    name: str,
    out_dir: Path,
    *,
    scenes: int | None,
    questions: int | None,
    cache_dir: Path,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Write a data set as LLaVA's conversation JSON, unless `out_dir` already is that very one.

    Args:
        name: One of `SETS`.
        out_dir: Gets `NAME.json`, `images/`, a card that names sources and licences and, unless
            the set is for training, the baseline of answers from questions alone. It appears
            whole or not at all.
        scenes: Images to ask about; None is the set's own number.
        questions: Questions to ask; None is the set's own number.
        cache_dir: Where the downloaded packages are kept.
        report: Called with a line of text at every step.

    Returns:
        The card.

    Raises:
        InputError: `out_dir` holds something that was not written here, or the images do not
            give so many questions.
        MachineError: The network or disk space is missing.
        CheckFailedError: The package has not the pinned hash.
    """
    source = SETS[name]
    place = out_dir.resolve()
    made_of = {
        "set": name,
        "scenes": scenes,
        "questions": questions,
        "version": _VERSION,
        "part": asdict(source.part),
    }
    card = _read_card(place)
    if card.get("made_of") == made_of and all((place / f).exists() for f in card["files"]):
        report(f"{out_dir} is already there and whole: nothing to do")
        return card
    refuse_foreign(place, {CARD, *card.get("files", ())})
    with disk_failures_explained(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        archive = fetch(source.part, cache_dir=cache_dir, report=report)
    report("asking questions")
    samples = source.samples(archive, images=scenes, questions=questions)
    with disk_failures_explained(place.parent), staging(place) as directory:
        write_samples(directory / f"{name}.json", name, samples)
        _write_baseline(name, samples, archive, directory)
        _write_images(source, samples, archive, directory, report)
        card = _write_card(made_of, source, samples, directory)
        put_in_place(directory, place)
    report(f"{out_dir} is complete")
    return card


def _write_baseline(name: str, samples: list[Sample], archive: Path, directory: Path) -> None:
    if name not in _TRAINING_SET:
        return
    training = SETS[_TRAINING_SET[name]].samples(archive)
    baseline = question_only_baseline(
        [sample.question for sample in training], [sample.question for sample in samples]
    )
    write_json(directory / BASELINE, to_json(baseline))


def _write_images(
    source: Source,
    samples: list[Sample],
    archive: Path,
    directory: Path,
    report: Callable[[str], None],
) -> None:
    draw = source.drawer(archive)
    (directory / IMAGES).mkdir()
    numbers = sorted({sample.image for sample in samples})
    for done, number in enumerate(numbers):
        if done * _PROGRESS % len(numbers) < _PROGRESS:
            report(f"drawing: {done} of {len(numbers)} images")
        draw(number).save(directory / image_path(number))


def _write_card(
    made_of: dict[str, Any], source: Source, samples: list[Sample], directory: Path
) -> dict[str, Any]:
    card = {
        "made_of": made_of,
        "licence": source.part.licence,
        "images": len({sample.image for sample in samples}),
        "questions": dict(sorted(Counter(s.question.kind for s in samples).items())),
        "files": sorted(path.name for path in directory.iterdir()),
    }
    write_json(directory / CARD, card)
    return card


def _read_card(place: Path) -> dict[str, Any]:
    """The card of a data set; empty if there is none, or it is unreadable."""
    try:
        card = json.loads((place / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}
