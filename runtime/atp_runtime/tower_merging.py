"""What a vision stage says of the patches that it merged between its tower's layers.

The graph chooses, as it is told nothing in between; the host is told what became of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from atp_runtime.reduction import Given, IndexArray, Reduction, VisionRule, check_count
from atp_runtime.tensor_names import TOWER_KEPT

RULE = "tower_merge"
"""What a manifest calls `TowerMerge`."""


RECEIVED, CLASS = "received", "class"
"""What patches are ranked by: the attention that all pay to them, or the class token alone."""


@dataclass(frozen=True)
class TowerMerge(VisionRule):
    """Patches were merged inside the tower (iLLaVA, arXiv 2412.06263; ELIP, arXiv 2309.16738).

    Attributes:
        layers: Behind which, 0-indexed, rising.
        keep: Patches left behind each, the merged one among them.
        prefix: Features before the first patch, which stay.
        score: `RECEIVED` or `CLASS`.
        text: The question's share in what the class token asks.
    """

    needs = (TOWER_KEPT,)
    layers: tuple[int, ...]
    keep: tuple[int, ...]
    prefix: int = 0
    score: str = RECEIVED
    text: float = 0.0

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.keep):
            raise ValueError("layers and keep must be equally many, one or more")
        if any(first >= second for first, second in pairwise(self.layers)):
            raise ValueError(f"layers are {list(self.layers)}, they must rise")
        if any(first <= second for first, second in pairwise(self.keep)):
            raise ValueError(f"keep is {list(self.keep)}, it must fall")
        check_count("keep", self.keep[-1])
        if self.score not in (RECEIVED, CLASS):
            raise ValueError(f"score is {self.score!r}, it must be {RECEIVED!r} or {CLASS!r}")
        if not 0 <= self.text <= 1 or (self.text and self.score != CLASS):
            raise ValueError(
                f"text is {self.text}, it must be from 0 to 1, and 0 but for {CLASS!r}"
            )

    def reduce(self, given: Given) -> Reduction:
        """All that came out of the tower, each in the place it has had before the first merge."""
        place = np.arange(0)
        for number, kept in enumerate(self.steps(given[TOWER_KEPT])):
            stood = np.where(kept < 0, -1 - kept, kept)
            place = place[stood] if number else stood
        whole = np.concatenate([np.arange(self.prefix), self.prefix + place])
        return Reduction(whole, inside=True)

    def most(self, tokens: int) -> int:  # noqa: ARG002 - counts are those of the plan
        """What the last merge leaves, and what stands before the patches."""
        return self.prefix + self.keep[-1]

    def steps(self, kept: npt.NDArray[np.int64]) -> Sequence[IndexArray]:
        """What stayed at each merge: int64 [..., keep], -1 - its place for the merged patch.

        Args:
            kept: int64 [..., sum of keep], one merge behind the other.
        """
        return np.split(kept, np.cumsum(self.keep)[:-1], axis=-1)
