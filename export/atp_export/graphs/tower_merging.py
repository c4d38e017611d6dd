"""Merging of patches between the layers of a tower, all inside the graph.

How many are left is known beforehand, so everything has a fixed length. Axis names: `images`,
`length` positions of a tower that come in, `patches` those of them that may be merged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from atp_export.graphs.dialects import grouped_scores
from atp_models.architecture import ModelSpec

# Weights that rounding made 0 would share nothing.
_TINY = 1e-30
_NORMS = ("layer_norm1", "norm1")


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


class CarriedText(nn.Module):
    """A text's mean embedding carried back through the projector, by its transposed matrices.

    Reconstructed: ELIP's code for CLIP (arXiv 2309.16738) carries the text's embedding into the
    tower by the transposed projection; LLaVA's has two layers, whose biases and activation are left
    out. Of several feature layers the mean is taken.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        whole = LlavaMultiModalProjector(spec.transformers_config())
        self.linear_1, self.linear_2 = whole.linear_1, whole.linear_2
        self.width = spec.vision.hidden

    def forward(self, text_mean: Tensor) -> Tensor:
        """Direction of length 1 or, of no text, 0: float32 [1, width] from float32 [1, hidden]."""
        second, first = self.linear_2.weight, self.linear_1.weight
        middle = _unit(_unit(text_mean).to(second.dtype) @ second)
        carried = middle.to(first.dtype) @ first
        return _unit(torch.unflatten(carried.float(), 1, (-1, self.width)).mean(1))


class TextQuery(nn.Module):
    """The class token's query in a layer, had it heard the text: ELIP's mix (arXiv 2309.16738).

    Reconstructed: the text's direction gets the class token's length before it is mixed in.

    Args:
        layer: Whose first norm and query projection are used.
        text: The text's share.
    """

    def __init__(self, layer: nn.Module, text: float) -> None:
        super().__init__()
        self.layer = layer
        self.text = text

    def forward(self, hidden_states: Tensor, carried: Tensor) -> Tensor:
        """Queries [images, 1, heads * head_dim].

        Args:
            hidden_states: What enters the layer: [images, length, width].
            carried: float32 [1, width], see `CarriedText`.
        """
        own = hidden_states[:, :1].float()
        length = own.pow(2).sum(-1, keepdim=True).sqrt()
        mixed = (1 - self.text) * own + self.text * length * carried.unsqueeze(1)
        norm, project = query_path(self.layer)
        query: Tensor = project(norm(mixed.to(hidden_states.dtype)))
        return query


def query_path(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A tower layer's first norm and its query projection."""
    modules = dict(layer.named_modules())
    norm = next(modules[name] for name in _NORMS if name in modules)
    return norm, next(it for name, it in modules.items() if name.endswith("q_proj"))


def _unit(rows: Tensor) -> Tensor:
    wide = rows.float()
    return wide / wide.pow(2).sum(-1, keepdim=True).sqrt().clamp(min=_TINY)


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
