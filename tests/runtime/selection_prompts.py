"""Prompts of one or more images with scores, and the modules that judge them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from atp_runtime.atp import AtpWeights
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import PointSelector, VisualTokens

PREFIX = "points.0."
SHAPES = {
    "shared.weight": (32, 16),
    "shared.bias": (32,),
    "redundancy.weight": (1, 32),
    "redundancy.bias": (1,),
    "spatial.weight": (1, 32),
    "spatial.bias": (1,),
}


def module_tensors(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    scale = {"shared.weight": 0.3, "redundancy.weight": 0.2, "spatial.weight": 0.3}
    return {
        PREFIX + name: (random.normal(size=shape) * scale.get(name, 0.5)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def selector(
    rule: str, parameters: dict[str, Any], tensors: dict[str, np.ndarray] | None = None
) -> PointSelector:
    weights = {PREFIX: AtpWeights.from_tensors(tensors, PREFIX)} if tensors else {}
    return PointSelector(PruningPoint(4, rule, parameters, PREFIX), weights)


def photo(*, before: int = 0, rows: int = 6, columns: int = 6, image: int = 0) -> VisualTokens:
    row, column = np.divmod(np.arange(rows * columns), columns)
    return VisualTokens(before + np.arange(len(row)), np.full_like(row, image), row, column)


def joined(*parts: VisualTokens) -> VisualTokens:
    names = ("index", "image", "row", "column")
    return VisualTokens(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


@dataclass(frozen=True)
class Prompt:
    scores_self: np.ndarray
    scores_cross: np.ndarray
    has_text: bool
    visual: VisualTokens


def random_prompt(seed: int) -> Prompt:
    """One or two images of any number of tokens left, with ties and constants among them."""
    random = np.random.default_rng(seed)
    parts, start = [], int(random.integers(0, 5))
    for image in range(int(random.integers(1, 3))):
        whole = photo(before=start, rows=8, columns=9, image=image)
        left = 1 if seed % 10 == 0 else int(random.integers(1, 73))
        chosen = np.sort(random.choice(72, left, replace=False))
        row = whole.row[chosen].copy()
        row[0] = -1 if seed % 3 == 0 else row[0]
        index = start + np.arange(left)
        parts.append(VisualTokens(index, whole.image[chosen], row, whole.column[chosen]))
        start += left + int(random.integers(0, 4))
    length = start + 3
    kinds = {
        0: lambda: random.normal(size=length) * 4,
        1: lambda: random.exponential(size=length) / length,
        2: lambda: random.integers(0, 5, size=length) / 4,
        3: lambda: np.full(length, 0.1),
    }
    own, cross = (kinds[int(random.choice(4, p=[0.4, 0.2, 0.3, 0.1]))]() for _ in range(2))
    has_text = seed % 7 != 0
    cross = np.abs(cross) * has_text
    return Prompt(own.astype(np.float32), cross.astype(np.float32), has_text, joined(*parts))
