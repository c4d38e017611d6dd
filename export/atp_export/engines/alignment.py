"""Puts side by side what two runs of a merging tower made of the same patches.

Rounding may tip which of two patches stays, and all tokens behind would be compared with their
neighbours. What both sides kept as it was is compared; how much that is, is a number of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.tensor_names import IMAGE_FEATURES, TOWER_KEPT
from atp_runtime.tower_merging import TowerMerge

Array = npt.NDArray[Any]
Outputs = dict[str, Array]

LEAST_SHARED = 0.9
"""Of the tokens of an image, that both sides must have; a wrong score shares about as many as
chance."""
SHARED = "shared_tokens"


def aligned(
    found: Mapping[str, Array], expected: Mapping[str, Array], rule: TowerMerge
) -> tuple[Outputs, Outputs]:
    """The tokens of both sides that stand in the same places.

    Args:
        found: One side's outputs of the vision stage, by name.
        expected: The other's.
        rule: What merges.

    Returns:
        Both sides' features [tokens, hidden], and `SHARED`: 1 if they share `LEAST_SHARED`, else
        0 on the side that was found, so that it fails.
    """
    sides: tuple[list[Array], list[Array]] = ([], [])
    shares: list[float] = []
    for image in range(len(expected[TOWER_KEPT])):
        ours, theirs = (
            rule.reduce({TOWER_KEPT: side[TOWER_KEPT][image]}).place for side in (found, expected)
        )
        both = np.intersect1d(ours, theirs)
        shares.append(len(both) / len(theirs))
        for side, outputs, place in zip(sides, (found, expected), (ours, theirs), strict=True):
            side.append(outputs[IMAGE_FEATURES][image][np.isin(place, both)])
    enough = np.array([float(min(shares) >= LEAST_SHARED)], dtype=np.float32)
    left = [np.concatenate(side) for side in sides]
    return (
        {IMAGE_FEATURES: left[0], SHARED: enough},
        {IMAGE_FEATURES: left[1], SHARED: np.ones(1, dtype=np.float32)},
    )
