"""The soft mask of a pruning point, image by image.

What inference does to the tokens that are left is done to those that are alive, their mask above
one half: they give the thresholds and the range that scores are scaled to, and of them alone the
best `min_keep` stay for certain. Other tokens' scores are clamped into that range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from atp_models.atp import AtpModule, soft_mask
from atp_models.training.packing import PatchGrid
from atp_models.training.rows import TokenBatch
from atp_models.training.scoring import BatchScores

ALIVE = 0.5


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """What a pruning point knows of one image's n tokens in a row.

    Attributes:
        batch_row: The row.
        places: int64 [n], of the tokens in the row.
        own: S_self [n].
        cross: S_cross [n].
        grid_row: int64 [n], of the grid that the image's tokens form, thinned or not.
        grid_column: int64 [n], likewise.
        has_text: Whether text follows the row's images.
    """

    batch_row: int
    places: Tensor
    own: Tensor
    cross: Tensor
    grid_row: Tensor
    grid_column: Tensor
    has_text: bool


def point_mask(
    module: AtpModule,
    scores: BatchScores,
    batch: TokenBatch,
    mask: Tensor,
    *,
    grid: PatchGrid,
    temperature: float,
) -> Tensor:
    """The mask that leaves a pruning point [batch, tokens]: the product of all M so far.

    Args:
        module: The point's.
        scores: Of the layer before it.
        batch: The tokens that entered that layer.
        mask: The product of the M before this point [batch, tokens], 1 for text.
        grid: Where features lie, on the batch's device.
        temperature: T of the soft mask; infinite for the decision that inference makes.
    """
    rows, places, values = [], [], []
    for image in images_of(scores, batch, grid):
        before = mask[image.batch_row, image.places]
        alive = before > ALIVE
        if not bool(alive.any()):
            continue
        hard = math.isinf(temperature)
        decided = _hard(module, image, alive) if hard else _soft(module, image, alive, temperature)
        rows.append(torch.full_like(image.places, image.batch_row))
        places.append(image.places)
        values.append(before * decided)
    if not values:
        return mask
    return mask.index_put((torch.cat(rows), torch.cat(places)), torch.cat(values))


def images_of(scores: BatchScores, batch: TokenBatch, grid: PatchGrid) -> Iterator[ImageTokens]:
    """The images of a batch, row by row."""
    has_text = scores.has_text.tolist()
    for number, features in enumerate(batch.features):
        image = torch.div(features, len(grid), rounding_mode="floor")
        for which in torch.unique(image[features >= 0]):
            places = (image == which).nonzero().flatten()
            patch = features[places] % len(grid)
            stride = 1 if batch.strides is None else int(batch.strides[number])
            yield ImageTokens(
                number,
                places,
                scores.own[number, places],
                scores.cross[number, places],
                torch.div(grid.row[patch], stride, rounding_mode="floor"),
                torch.div(grid.column[patch], stride, rounding_mode="floor"),
                has_text[number],
            )


def _hard(module: AtpModule, image: ImageTokens, alive: Tensor) -> Tensor:
    """1 for the tokens that inference keeps, 0 for the others."""
    kept = module.keep_mask(
        image.own[alive],
        image.cross[alive],
        torch.zeros_like(image.places[alive]),
        image.grid_row[alive],
        image.grid_column[alive],
        has_text=image.has_text,
    )
    return torch.zeros_like(image.own).index_put((alive.nonzero().flatten(),), kept.float())


def _soft(module: AtpModule, image: ImageTokens, alive: Tensor, temperature: float) -> Tensor:
    """M [n]; see `atp_models.atp.soft_mask`."""
    thresholds = module.thresholds(image.own[alive], image.cross[alive], has_text=image.has_text)
    margins = module.margins(
        _clamped(image.own, alive),
        _clamped(image.cross, alive),
        image.grid_row,
        image.grid_column,
        has_text=image.has_text,
        thresholds=thresholds,
    )
    return _bounded(soft_mask(margins, temperature), margins, alive, module)


def _clamped(scores: Tensor, alive: Tensor) -> Tensor:
    low, high = scores[alive].aminmax()
    return scores.clamp(low, high)


def _bounded(decided: Tensor, margins: Tensor, alive: Tensor, module: AtpModule) -> Tensor:
    """1 for the best `min_keep` of those alive, 0 for what is beyond `max_keep`."""
    living = alive.nonzero().flatten()
    best = living[margins.detach()[living].sort(descending=True, stable=True).indices]
    certain = torch.zeros_like(alive)
    certain[best[: module.config.min_keep]] = True
    decided = torch.where(certain, 1, decided)
    if module.config.max_keep is None:
        return decided
    excess = torch.zeros_like(alive)
    excess[best[module.config.max_keep :]] = True
    return torch.where(excess, 0, decided)
