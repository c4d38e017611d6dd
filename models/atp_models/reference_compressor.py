"""QueCC's compressor (arXiv 2411.03312) in PyTorch, by its plain convolution and whole weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from atp_models.checkpoint import Checkpoint
from atp_models.compressor import EPSILON, HEADS, read_compressor
from atp_models.vision_spec import VisionSpec


@dataclass(frozen=True, eq=False)
class Compressor:
    """A checkpoint's compressor.

    Attributes:
        weights: See `atp_models.compressor.read_compressor`.
        grid: (rows, columns) of patches.
    """

    weights: Mapping[str, Tensor]
    grid: tuple[int, int]

    @classmethod
    def read(cls, checkpoint: Checkpoint, vision: VisionSpec) -> Compressor:
        """That of a checkpoint with this tower."""
        return cls(read_compressor(checkpoint), vision.grid)

    def of(self, selected: Tensor, text: Tensor) -> Tensor:
        """What the projector gets: [images, cells, features].

        Args:
            selected: What it would get without: [images, patches, features].
            text: The mean of the question's embeddings [hidden].
        """
        kernel = self.weights["downsample.weight"]
        width, cell = kernel.shape[0], tuple(kernel.shape[2:])
        # Of several layers the last.
        told = selected[..., -width:] + self._norm("text", self._linear("text.linear", text))
        queries = functional.conv2d(
            self._plane(self._mlp("queries", told)),
            kernel,
            self.weights["downsample.bias"],
            stride=cell,
            groups=width,
        )
        asked = self._heads("q", queries.flatten(2).mT.unsqueeze(2))
        unfold = partial(functional.unfold, kernel_size=cell, stride=cell)
        keys, values = (
            # [images, width * patches, cells] to [images, cells, patches, width].
            torch.unflatten(unfold(self._plane(self._mlp(role, selected))), 1, (width, -1)).permute(
                0, 3, 2, 1
            )
            for role in ("keys", "values")
        )
        mixed = functional.scaled_dot_product_attention(
            asked, self._heads("k", keys), self._heads("v", values)
        )
        return self._linear("attention.out_proj", mixed.transpose(2, 3).flatten(2))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.weights[f"{name}.norm.{it}"] for it in ("weight", "bias"))
        return functional.layer_norm(x, weight.shape, weight, bias, EPSILON)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        inner = functional.gelu(self._linear(f"{name}.linear_1", x))
        return self._norm(name, self._linear(f"{name}.linear_2", inner))

    def _plane(self, x: Tensor) -> Tensor:
        """[images, width, rows, columns] of [images, patches, width]."""
        return torch.unflatten(x.mT, 2, self.grid)

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """Projected [images, cells, heads, rows, head_dim] of [images, cells, rows, width]."""
        projected = torch.unflatten(self._linear(f"attention.{name}_proj", x), 3, (HEADS, -1))
        return projected.transpose(2, 3)
