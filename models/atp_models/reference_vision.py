"""The vision tower and the projector in PyTorch, with everything they compute in sight.

Patches are merged between the tower's layers as it is told: which ones is taken over, their shares
are computed here, from whole attention matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Compress = Callable[[Tensor], Tensor]
"""From what a projector would get, [images, tokens, width], to what it gets."""


@dataclass(frozen=True, eq=False)
class VisionStep:
    """What the vision tower and the projector made of images.

    Attributes:
        states: Hidden states entering each layer of the tower, and those leaving the last:
            [images, patches, width].
        chosen: Those of them that features are taken of, side by side: [images, patches, width].
        features: [images, tokens, hidden].
        layers: What attention computes in each layer.
        merges: What was merged between them.
    """

    states: tuple[Tensor, ...]
    chosen: Tensor
    features: Tensor
    layers: tuple[TowerLayer, ...]
    merges: tuple[TowerMerging, ...] = ()

    @property
    def selected(self) -> Tensor:
        """What the projector takes: [images, tokens, width]."""
        return self.chosen[:, -self.features.shape[1] :]


@dataclass(frozen=True, eq=False)
class TowerLayer:
    """What the attention of a tower's layer computes.

    Attributes:
        first_row: Its weights of the first position, a class token where there is one, heads
            averaged: [images, patches].
        keys: [images, patches, heads * head_dim].
        heads: How many there are.
        query: Like `keys`.
    """

    first_row: Tensor
    keys: Tensor
    heads: int
    query: Tensor

    @property
    def received(self) -> Tensor:
        """What each position gets of attention: [images, patches].

        The geometric mean over all queries, scaled to a sum of 1, heads averaged.
        """
        query, keys = (torch.unflatten(it, 2, (self.heads, -1)) for it in (self.query, self.keys))
        rows = torch.einsum("iqhd,ikhd->ihqk", query, keys) / query.shape[3] ** 0.5
        means: Tensor = rows.log_softmax(-1).mean(2).softmax(-1).mean(1)
        return means

    def attention(self, query: Tensor) -> Tensor:
        """What each position gets of one more query's attention [images, width], heads averaged."""
        one, keys = (torch.unflatten(it, -1, (self.heads, -1)) for it in (query, self.keys))
        rows = torch.einsum("ihd,ikhd->ihk", one, keys) / one.shape[2] ** 0.5
        mean: Tensor = rows.softmax(-1).mean(1)
        return mean


@dataclass(frozen=True, eq=False)
class ClassToken:
    """A class token that is asked which patches matter.

    Attributes:
        share: Of the question in what it asks.
        text: The mean of the question's embeddings [hidden].
    """

    share: float
    text: Tensor

    def query(self, model: Any, layer: nn.Module, entered: Tensor) -> Tensor:
        """Its query in a layer [images, width], of what enters that: [images, positions, width]."""
        projector, first = model.multi_modal_projector, entered[:, 0]
        carried = _unit(self.text @ projector.linear_2.weight) @ projector.linear_1.weight
        # Of several feature layers their mean.
        direction = _unit(carried.reshape(-1, first.shape[1]).mean(0))
        mixed = (1 - self.share) * first + self.share * first.norm(dim=1)[:, None] * direction
        modules = dict(layer.named_modules())
        norm = modules.get("layer_norm1", modules.get("norm1"))
        project = next(it for name, it in modules.items() if name.endswith("q_proj"))
        assert norm is not None  # noqa: S101 - a layer without one is no layer of these towers
        query: Tensor = project(norm(mixed))
        return query


def _unit(row: Tensor) -> Tensor:
    unit: Tensor = row / row.norm()
    return unit


@dataclass(frozen=True, eq=False)
class TowerMerged:
    """Which patches a merge between a tower's layers is to leave.

    Attributes:
        layer: Behind which (0-indexed).
        kept: int64 [images, keep], rising: their places, -1 - its place for the merged one, which
            is made of the patches that are not there and of the one whose place it takes.
        patches: How many there are before it; positions in front of them stay.
        asked: Who ranks them; None is all positions.
    """

    layer: int
    kept: Tensor
    patches: int
    asked: ClassToken | None = None

    def of(self, states: Tensor, scores: Tensor) -> Tensor:
        """What is left of hidden states [images, patches, width] scored by [images, patches]."""
        return torch.stack([*map(_merged, states, scores, self.kept)])


@dataclass(frozen=True, eq=False)
class TowerMerging:
    """What a merge did.

    Attributes:
        layer: Behind which (0-indexed).
        left: Hidden states that left it, before the merge: [images, positions, width].
        scores: By which patches are ranked and weighed: [images, patches].
    """

    layer: int
    left: Tensor
    scores: Tensor


def _merged(states: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """One image's patches [keep, width]."""
    place = torch.where(kept < 0, -1 - kept, kept)
    rest = torch.ones(len(states), dtype=torch.bool)
    rest[kept[kept >= 0]] = False
    left = states[place]
    left[kept < 0] = scores[rest] / scores[rest].sum() @ states[rest]
    return left


@torch.inference_mode()
def see(
    model: Any,
    pixel_values: Tensor,
    merged: Sequence[TowerMerged] = (),
    compress: Compress | None = None,
) -> VisionStep:
    """Runs the vision tower and the projector of a `LlavaModel` whose attention is `ATTENTION`.

    Args:
        model: It.
        pixel_values: [images, 3, height, width].
        merged: What is merged between the tower's layers.
        compress: What becomes of features before the projector.
    """
    with (
        _watch_tower(model.vision_tower) as layers,
        _merge_in(model, merged, layers) as merges,
        _compress_in(model, compress),
    ):
        outputs = model.get_image_features(pixel_values, output_hidden_states=True)
    states, used = tuple(outputs.hidden_states), model.config.vision_feature_layer
    chosen = [states[layer] for layer in ([used] if isinstance(used, int) else used)]
    features = torch.stack(tuple(outputs.pooler_output))
    return VisionStep(states, torch.cat(chosen, dim=-1), features, tuple(layers), tuple(merges))


@contextmanager
def _watch_tower(tower: nn.Module) -> Iterator[list[TowerLayer]]:
    """Collects what the attention of each layer computes, in the order they run."""
    layers: list[TowerLayer] = []
    seen: dict[str, Tensor] = {}

    def attended(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
        weights = output[1]
        first, heads = weights[:, :, 0].mean(1), weights.shape[1]
        layers.append(TowerLayer(first, seen["k_proj"], heads, seen["q_proj"]))

    hooks = []
    for name, module in tower.named_modules():
        parent, _, last = name.rpartition(".")
        if last in ("q_proj", "k_proj"):
            hooks.append(module.register_forward_hook(partial(_note, seen, last)))
        if last == "k_proj":
            hooks.append(tower.get_submodule(parent).register_forward_hook(attended))
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _note(
    seen: dict[str, Tensor], name: str, _module: nn.Module, _inputs: object, output: Tensor
) -> None:
    seen[name] = output


@contextmanager
def _merge_in(
    model: Any, merged: Sequence[TowerMerged], layers: Sequence[TowerLayer]
) -> Iterator[list[TowerMerging]]:
    """Merges behind layers; collects what was done.

    Args:
        model: Whose tower it is.
        merged: What is to be merged.
        layers: Where each layer's attention is to be found when it has run.
    """
    merges: list[TowerMerging] = []

    def merge(
        it: TowerMerged, module: nn.Module, inputs: tuple[Tensor, ...], left: Tensor
    ) -> Tensor:
        fixed, layer = left.shape[1] - it.patches, layers[it.layer]
        scores = layer.received
        if it.asked is not None:
            scores = layer.attention(it.asked.query(model, module, inputs[0]))
        scores = scores[:, fixed:]
        merges.append(TowerMerging(it.layer, left, scores))
        return torch.cat((left[:, :fixed], it.of(left[:, fixed:], scores)), dim=1)

    encoder = model.vision_tower.encoder
    modules = getattr(encoder, "layers", None) or encoder.layer
    # First of all, so that whoever collects hidden states sees what is left.
    hooks = [
        modules[it.layer].register_forward_hook(partial(merge, it), prepend=True) for it in merged
    ]
    try:
        yield merges
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _compress_in(model: Any, compress: Compress | None) -> Iterator[None]:
    """Compresses before the projector, if told how."""
    if compress is None:
        yield
        return
    hook = model.multi_modal_projector.register_forward_pre_hook(
        lambda _module, inputs: compress(*inputs)
    )
    try:
        yield
    finally:
        hook.remove()
