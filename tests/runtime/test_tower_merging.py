"""What a bundle says of patches merged inside the tower, and what becomes of it on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atp_runtime.tower_merging import TowerMerge


def test_places_lead_back_to_the_photo() -> None:
    rule = TowerMerge((3, 5), (4, 2))
    # Of six patches 1, 2, 4 and 5 are left, then the first and the last of these.
    kept = np.array([1, -3, 4, 5, 0, -4])
    features = np.arange(4.0).reshape(2, 2)
    left = rule.reduce({"tower.kept": kept, "image_features": features})
    assert left.place.tolist() == [1, 5]
    np.testing.assert_array_equal(left.of(features), features)


def test_what_stands_before_the_patches_keeps_its_place() -> None:
    rule = TowerMerge((0,), (2,), prefix=1)
    assert rule.reduce({"tower.kept": np.array([0, -3])}).place.tolist() == [0, 1, 3]
    assert rule.most(9) == 3


def test_steps_are_told_apart_for_several_images() -> None:
    first, second = TowerMerge((0, 1), (3, 1)).steps(np.arange(8).reshape(2, 4))
    assert (first.tolist(), second.tolist()) == ([[0, 1, 2], [4, 5, 6]], [[3], [7]])


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"layers": (), "keep": ()}, "equally many"),
        ({"layers": (1,), "keep": (3, 2)}, "equally many"),
        ({"layers": (2, 1), "keep": (3, 2)}, "they must rise"),
        ({"layers": (1, 2), "keep": (2, 2)}, "it must fall"),
        ({"layers": (1,), "keep": (0,)}, "keep is 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TowerMerge(**parameters)
