"""Merging of patches between the layers of a tower, all inside the graph.

How many are left is known beforehand, so everything has a fixed length. Axis names: `images`,
`length` positions of a tower that come in, `patches` those of them that may be merged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atp_export.graphs.dialects import grouped_scores

# Weights that rounding made 0 would share nothing.
_TINY = 1e-30


class ReceivedScorer(nn.Module):
    """How much attention each patch gets, without a row of attention for each position.

    The softmax of the mean query's scores is, up to scale, the geometric mean of all queries'
    attention: its logarithm is the mean of theirs. The arithmetic mean of iLLaVA (arXiv 2412.06263)
    takes the whole matrix.

    Args:
        heads: Of the layer.
        fixed: Positions before the first patch that may be merged.
    """

    def __init__(self, heads: int, fixed: int) -> None:
        super().__init__()
        self.heads = heads
        self.fixed = fixed

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Attention, heads averaged: float32 [images, patches].

        Args:
            query: [images, length, heads * head_dim].
            keys: Like `query`.
        """
        split = (self.heads, -1)
        mean = torch.unflatten(query.float().mean(1, keepdim=True), 2, split)
        scores = grouped_scores(mean, torch.unflatten(keys.float(), 2, split))
        return scores.softmax(-1).mean((1, 2, 3))[:, self.fixed :]


class PatchMerge(nn.Module):
    """Keeps the patches with the highest scores and makes one of all others.

    That one is their mean, weighted by their scores, and stands in the place of the heaviest. Of
    equal scores the earlier counts as the higher. No backend has to break a tie: what is sorted
    besides the scores themselves are numbers that are all different.

    Args:
        keep: Patches that are left, the merged one among them.
        fixed: Positions before the first patch, which stay.
    """

    def __init__(self, keep: int, fixed: int) -> None:
        super().__init__()
        self.keep = keep
        self.fixed = fixed

    def forward(self, hidden_states: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """What is left.

        Args:
            hidden_states: [images, length, width].
            scores: float32 [images, patches].

        Returns:
            Hidden states [images, fixed + keep, width] and int64 [images, keep], rising: the places
            of patches that stay, and -1 - the place of the merged one.
        """
        patches = hidden_states[:, self.fixed :]
        count = scores.shape[1]
        falling = torch.arange(count, 0, -1, dtype=torch.float32)
        lowest = scores.topk(self.keep).values[:, -1:]
        # Above the lowest that stays, equal to it, below it; in each the earlier first.
        order = falling + count * ((scores >= lowest).float() + (scores > lowest).float())
        chosen, place = order.topk(self.keep)
        heaviest, head = chosen[:, -1:], place[:, -1:]
        weights = torch.where(order > heaviest, 0.0, scores.clamp(min=_TINY))
        shares = weights / weights.sum(1, keepdim=True)
        merged = (shares.unsqueeze(1) @ patches.float()).to(patches.dtype)
        rising = count - (count - place).float().topk(self.keep).values.long()
        is_head = rising == head
        left = torch.where(is_head.unsqueeze(2), merged, _rows(patches, rising))
        kept = torch.where(is_head, -1 - rising, rising)
        return torch.cat((hidden_states[:, : self.fixed], left), dim=1), kept


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows [images, kept, width] of [images, patches, width], without an index for each number."""
    shape = (*index.shape, values.shape[2])
    rows: Tensor = torch.onnx.ops.symbolic(
        "GatherND", (values, index.unsqueeze(2)), {"batch_dims": 1}, dtype=values.dtype, shape=shape
    )
    return rows
