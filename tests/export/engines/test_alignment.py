"""Two runs of a merging tower side by side, rounding having tipped what stays."""

from __future__ import annotations

import numpy as np
import pytest

from atp_export.engines.agreement import BOUNDS, compare_outputs
from atp_export.engines.alignment import aligned
from atp_runtime.tower_merging import TowerMerge

PATCHES, KEEP, WIDTH = 40, 20, 4
RULE = TowerMerge((3,), (KEEP,))


def outputs(place: list[int]) -> dict[str, np.ndarray]:
    """Of one image: each patch has features of its own, the last that stays is merged."""
    features = np.random.default_rng(0).normal(size=(PATCHES, WIDTH)).astype(np.float32)
    kept = np.array([*place[:-1], -1 - place[-1]])
    return {"image_features": features[place][None], "tower.kept": kept[None]}


def verdict(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, bool]:
    ours, theirs = aligned(found, expected, RULE)
    return {it.tensor: it.passed for it in compare_outputs(ours, theirs, BOUNDS["fp32"])}


FIRST = [*range(KEEP)]


@pytest.mark.parametrize("tipped", [[*range(1, KEEP + 1)], [0, *range(2, KEEP), 39], FIRST])
def test_a_tipped_choice_passes(tipped: list[int]) -> None:
    assert verdict(outputs(tipped), outputs(FIRST)) == {
        "image_features": True,
        "shared_tokens": True,
    }


def test_other_features_in_the_same_places_fail() -> None:
    found = outputs(FIRST)
    found["image_features"] = np.roll(found["image_features"], 1, axis=1)
    assert not verdict(found, outputs(FIRST))["image_features"]


def test_another_choice_fails() -> None:
    found = verdict(outputs([*range(5, KEEP + 5)]), outputs(FIRST))
    assert found == {"image_features": True, "shared_tokens": False}


def test_choices_that_share_nothing_fail() -> None:
    found = verdict(outputs([*range(KEEP, PATCHES)]), outputs(FIRST))
    assert not any(found.values())
