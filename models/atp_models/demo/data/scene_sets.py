"""The data sets of drawn scenes: which scenes, and which questions about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from atp_models.demo.data.samples import Sample, Source, too_few
from atp_models.demo.parts import FLUENT_ARTWORK, NOTO_ARTWORK, Part
from atp_models.demo.scenes.artwork import Artwork
from atp_models.demo.scenes.captions import captions
from atp_models.demo.scenes.drawing import draw
from atp_models.demo.scenes.layout import make_scene
from atp_models.demo.scenes.questions import KINDS, questions

_TRAINING_SCENES = 3000
_TRAINING_MOST = 3  # questions of a kind about one scene
_TEST_MOST = 2
_CHOICE_STREAM = 13  # apart from those that lay out, draw and ask


@dataclass(frozen=True)
class _Scenes:
    """Scenes of one split in one style.

    Attributes:
        split: See `make_scene`.
        part: The artwork.
        style: Of the artwork, see `Artwork.read`.
    """

    split: int
    part: Part
    style: str

    def drawer(self, archive: Path) -> Callable[[int], Image.Image]:
        """See `Source.drawer`."""
        artwork = Artwork.read(archive, self.style)
        return lambda number: draw(make_scene(self.split, number), artwork)


@dataclass(frozen=True)
class TrainingScenes(_Scenes):
    """Up to three questions of each kind about every scene, and its captions."""

    def samples(
        self, archive: Path, *, images: int | None = None, questions: int | None = None
    ) -> list[Sample]:
        """See `Source.samples`; `questions` keeps the first ones."""
        del archive  # what is asked does not depend on the artwork
        scenes = _TRAINING_SCENES if images is None else images
        everything: list[Sample] = []
        for number in range(scenes):
            everything += _asked(self.split, number, _TRAINING_MOST, with_captions=True)
        if questions is not None and questions > len(everything):
            raise too_few(questions, len(everything))
        return everything[:questions]


@dataclass(frozen=True)
class HeldOutScenes(_Scenes):
    """Questions of all kinds in equal number, at most two of a kind about a scene.

    Attributes:
        scenes: How many, unless told.
        questions: How many, unless told; fewer if fewer scenes than `scenes` have not so many.
    """

    scenes: int
    questions: int

    def samples(
        self, archive: Path, *, images: int | None = None, questions: int | None = None
    ) -> list[Sample]:
        """See `Source.samples`; which questions of a kind are taken is a seeded choice."""
        del archive  # what is asked does not depend on the artwork
        scenes = self.scenes if images is None else images
        wanted = self.questions if questions is None else questions
        pool: dict[str, list[Sample]] = defaultdict(list)
        for number in range(scenes):
            for sample in _asked(self.split, number, _TEST_MOST, with_captions=False):
                pool[sample.question.kind].append(sample)
        shares = equal_shares(wanted, {kind: len(pool[kind]) for kind in KINDS})
        if questions is not None and sum(shares.values()) < questions:
            raise too_few(questions, sum(shares.values()))
        chosen: list[Sample] = []
        for stream, kind in enumerate(KINDS):
            rng = np.random.default_rng((self.split, stream, _CHOICE_STREAM))
            numbers = rng.permutation(len(pool[kind]))[: shares[kind]]
            chosen += [pool[kind][number] for number in sorted(numbers)]
        return sorted(chosen, key=lambda sample: sample.image)


def _asked(split: int, number: int, most: int, *, with_captions: bool) -> list[Sample]:
    scene = make_scene(split, number)
    asked = questions(scene, most) + (captions(scene) if with_captions else [])
    return [Sample(number, question, len(scene.items)) for question in asked]


def equal_shares(total: int, available: Mapping[str, int]) -> dict[str, int]:
    """Divide `total` among the keys as equally as what is available allows.

    Returns:
        Shares that add up to `total`, or to all there is if that is less. A key that has
        enough gets at most one more than any other.
    """
    shares = dict.fromkeys(available, 0)
    # The scarcest first: what they cannot give falls to those that have more.
    for left, key in enumerate(sorted(available, key=lambda key: available[key])):
        even = (total - sum(shares.values())) // (len(available) - left)
        shares[key] = min(available[key], even)
    return shares


SCENE_SETS: dict[str, Source] = {
    "scenes-train": TrainingScenes(0, NOTO_ARTWORK, "noto"),
    "scenes-validation": HeldOutScenes(1, NOTO_ARTWORK, "noto", scenes=250, questions=1000),
    "scenes-test": HeldOutScenes(2, NOTO_ARTWORK, "noto", scenes=500, questions=2000),
    "scenes-other-style": HeldOutScenes(3, FLUENT_ARTWORK, "fluent", scenes=500, questions=2000),
}
