"""Checkpoints with QueCC's compressor before their projector, and what it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tests.routers import with_tensors

from atp_models.architecture import VisionSpec, read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.compressor import PREFIX, compressor_shapes

Array = np.ndarray


def drawn(vision: VisionSpec, hidden: int, grid: int) -> dict[str, torch.Tensor]:
    """A compressor for a tower, as checkpoints would store it."""
    made = torch.Generator().manual_seed(grid)
    tensors = {}
    for name, shape in compressor_shapes(vision, hidden, grid).items():
        noise = torch.randn(shape, generator=made)
        if name.endswith(".norm.weight"):
            noise = 1 + 0.3 * noise
        elif name.endswith(".weight"):
            # Scores of attention of the order of one, so that it is neither flat nor one-hot.
            noise *= 1.5 / torch.Size(shape[1:]).numel() ** 0.5
        else:
            noise *= 0.3
        tensors[f"quecc.{name.removeprefix(PREFIX)}"] = noise
    return tensors


def with_compressor(source: Path, directory: Path, grid: int) -> Path:
    """A copy of a checkpoint with a compressor to `grid` x `grid` tokens."""
    spec = read_architecture(Checkpoint.open(source))
    return with_tensors(source, directory, drawn(spec.vision, spec.text.hidden, grid))


class Reading:
    """QueCC's module in float64, cell by cell and head by head.

    Args:
        tensors: As `drawn` gives them.
        patches: (rows, columns) of a photo.
        grid: Cells along each side.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], patches: tuple[int, int], grid: int
    ) -> None:
        self.weights = {
            name.removeprefix("quecc."): it.double().numpy() for name, it in tensors.items()
        }
        self.columns = patches[1]
        self.cell = patches[0] // grid, patches[1] // grid
        self.grid = grid

    def tokens(self, features: Array, text: Array) -> Array:
        """What the projector gets of one photo's features [patches, width]."""
        told = self.norm("text", self.linear("text.linear", text.astype(np.float64)))
        kernel = self.weights["downsample.weight"][:, 0]
        made = []
        for row in range(self.grid):
            for column in range(self.grid):
                query = self.weights["downsample.bias"].copy()
                keys, values = [], []
                for y in range(self.cell[0]):
                    for x in range(self.cell[1]):
                        patch = (row * self.cell[0] + y) * self.columns
                        patch += column * self.cell[1] + x
                        whole = features[patch].astype(np.float64)
                        own = whole[len(whole) - len(told) :] + told
                        query += kernel[:, y, x] * self.feed_forward("queries", own)
                        keys.append(self.feed_forward("keys", whole))
                        values.append(self.feed_forward("values", whole))
                made.append(self.attend(query, np.array(keys), np.array(values)))
        return np.array(made)

    def attend(self, query: Array, keys: Array, values: Array) -> Array:
        asked = self.linear("attention.q_proj", query)
        keys = np.array([self.linear("attention.k_proj", key) for key in keys])
        values = np.array([self.linear("attention.v_proj", value) for value in values])
        heads = []
        for head in np.split(np.arange(len(asked)), 8):
            weights = np.exp(keys[:, head] @ asked[head] / math.sqrt(len(head)))
            heads.append(weights @ values[:, head] / weights.sum())
        return self.linear("attention.out_proj", np.concatenate(heads))

    def feed_forward(self, name: str, x: Array) -> Array:
        inner = self.linear(f"{name}.linear_1", x)
        gelu = np.array([it * (1 + math.erf(it / math.sqrt(2))) / 2 for it in inner])
        return self.norm(name, self.linear(f"{name}.linear_2", gelu))

    def linear(self, name: str, x: Array) -> Array:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean()
        unit = centred / math.sqrt((centred**2).mean() + 1e-6)
        return unit * self.weights[f"{name}.norm.weight"] + self.weights[f"{name}.norm.bias"]
