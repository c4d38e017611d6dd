"""Selections that are told what to keep."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection, VisualTokens


@dataclass
class ForcedSelection:
    """Keeps what it is told, and remembers what it was asked."""

    masks: Sequence[Sequence[bool]]
    points: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    has_text: list[bool] = field(default_factory=list)
    visual: list[VisualTokens] = field(default_factory=list)

    def __call__(
        self,
        point: PruningPoint,
        scores_self: np.ndarray,
        scores_cross: np.ndarray,
        has_text: bool,
        visual: VisualTokens,
    ) -> Selection:
        mask = self.masks[len(self.points)]
        self.points.append(point.before_layer)
        self.scores.append(np.stack([scores_self, scores_cross]))
        self.has_text.append(has_text)
        self.visual.append(visual)
        return Selection(np.array(mask, dtype=np.bool_).reshape(len(visual)), note="forced")


def keep_all(
    _point: PruningPoint, _self: np.ndarray, _cross: np.ndarray, _text: bool, visual: VisualTokens
) -> Selection:
    return Selection(np.ones(len(visual), dtype=np.bool_))
