"""QueCC's compressor (arXiv 2411.03312) and the projector behind it, all inside the graph.

Parameter names are the checkpoint's, see `atp_models.compressor`. Axis names: `images`, `patches`
of a tower, `cells` of a photo, row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from atp_export.graphs.dialects import Dialect
from atp_export.graphs.vision import PatchFeatures
from atp_models.architecture import ModelSpec, VisionSpec
from atp_models.compressor import EPSILON, HEADS


class CompressedExit(nn.Module):
    """Feature selection, compressor and projector."""

    def __init__(self, spec: ModelSpec, dialect: Dialect, grid: int) -> None:
        super().__init__()
        self.select = PatchFeatures(spec)
        self.quecc = CellCompressor(spec.vision, spec.text.hidden, dialect, grid)
        self.multi_modal_projector = LlavaMultiModalProjector(spec.transformers_config())

    def forward(self, text_mean: Tensor, *states: Tensor) -> Tensor:
        """Image features [images, cells, hidden].

        Args:
            text_mean: The mean of the question's embeddings, float32 [1, hidden].
            states: The chosen [images, patches, width].
        """
        features: Tensor = self.multi_modal_projector(self.quecc(self.select(*states), text_mean))
        return features


class CellCompressor(nn.Module):
    """One token of each cell of a photo: a query that heard the question, attending to its patches.

    Args:
        vision: The tower.
        hidden: The decoder's width.
        dialect: Of the graph.
        grid: Cells along each side.
    """

    def __init__(self, vision: VisionSpec, hidden: int, dialect: Dialect, grid: int) -> None:
        super().__init__()
        width, features = vision.hidden, vision.feature_width
        self.cells = grid**2
        self.split = _CellSplit(vision.grid, grid)
        self.text = _Text(hidden, width)
        self.queries = _FeedForward(width, width)
        self.keys = _FeedForward(features, width)
        self.values = _FeedForward(features, width)
        self.downsample = _Downsample(width, (vision.grid[0] // grid, vision.grid[1] // grid))
        self.attention = _Attention(width, features, dialect)

    def forward(self, features: Tensor, text_mean: Tensor) -> Tensor:
        """What the projector gets [images, cells, features].

        Args:
            features: What it would get without: [images, patches, features].
            text_mean: float32 [1, hidden].
        """
        # Of several layers the last.
        own = features[..., -self.downsample.width :]
        told = (own.float() + self.text(text_mean.unsqueeze(0))).to(own.dtype)
        queries = self.downsample(self.split(self.queries(told)))
        keys, values = self.split(self.keys(features)), self.split(self.values(features))
        tokens: Tensor = self.attention(queries, keys, values)
        return torch.unflatten(tokens.squeeze(1), 0, (-1, self.cells))


class _CellSplit(nn.Module):
    """Patches [images, patches, width] by their cells: [images * cells, patches of it, width]."""

    def __init__(self, patches: tuple[int, int], grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.rows = patches[0] // grid
        self.columns = patches[1] // grid

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[2]
        bands = x.reshape(-1, self.rows, self.grid, self.columns * width)
        return bands.transpose(1, 2).reshape(-1, self.rows * self.columns, width)


class _Text(nn.Module):
    """What the question adds to every patch, in float32: embeddings' means are small."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, width, dtype=torch.float32)
        self.norm = nn.LayerNorm(width, eps=EPSILON, dtype=torch.float32)

    def forward(self, text_mean: Tensor) -> Tensor:
        told: Tensor = self.norm(self.linear(text_mean))
        return told


class _FeedForward(nn.Module):
    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(entering, width)
        self.linear_2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(self.linear_2(nn.functional.gelu(self.linear_1(x))))
        return made


class _Downsample(nn.Module):
    """A depthwise convolution whose kernel is a cell: one weighted sum of each, in float32."""

    def __init__(self, width: int, cell: tuple[int, int]) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(width, 1, *cell))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[images * cells, 1, width] of [images * cells, patches, width]."""
        kernel = self.weight.flatten(1).t()
        summed = (x.float() * kernel.float()).sum(1, keepdim=True) + self.bias.float()
        return summed.to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, width: int, features: int, dialect: Dialect) -> None:
        super().__init__()
        self.dialect = dialect
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, features)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        projected = self.q_proj(queries), self.k_proj(keys), self.v_proj(values)
        q, k, v = (torch.unflatten(it, 2, (HEADS, -1)) for it in projected)
        mixed: Tensor = self.out_proj(self.dialect.attend(q, k, v, None))
        return mixed
