"""Thresholds fitted to a token budget from samples, without gradients and without answers.

Each module gets two numbers: a theta_s that admits no more of the sampling grids than half of what
is planned for the point, and a theta_r, found by bisection, at which the samples keep what is
planned on average. Both are the same for all images: thresholds that follow the scores of an image,
as training starts with them, would keep about the same share of every one. Point follows point,
each seeing what those before it leave. How many tokens an image keeps depends on its scores; which
of them matter for the answer was never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from atp_models.atp import AtpModule
from atp_models.pruning_config import PruningConfig
from atp_models.training.masking import ImageTokens, images_of
from atp_models.training.progress import Progress
from atp_models.training.rows import TokenBatch
from atp_models.training.soft_decoder import SoftDecoder

_STEPS = 40
_RANGE = 20.0  # of a sigmoid's argument: from all tokens to none


def token_plan(config: PruningConfig, *, depth: int, tokens: int) -> tuple[float, ...]:
    """Tokens to keep at each point, falling by equal factors, never below `min_keep`.

    Args:
        config: Its target is the average over all layers.
        depth: Decoder layers.
        tokens: Visual tokens per image.
    """
    lengths = [end - begin for begin, end in pairwise((*config.layers, depth))]

    def plan(factor: float) -> tuple[float, ...]:
        falling = (tokens * factor ** (point + 1) for point in range(len(lengths)))
        return tuple(max(float(config.min_keep), count) for count in falling)

    def mean(factor: float) -> float:
        spent = sum(count * length for count, length in zip(plan(factor), lengths, strict=True))
        return (tokens * config.layers[0] + spent) / depth

    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < config.target_tokens else (low, middle)
    return plan(high)


@torch.no_grad()
def fit_thresholds(
    decoder: SoftDecoder, batches: Sequence[TokenBatch], plan: Sequence[float], progress: Progress
) -> tuple[float, ...]:
    """Sets the thresholds of all points.

    Args:
        decoder: Its modules are changed in place, from where they are.
        batches: Samples with images, on the decoder's device.
        plan: Tokens to keep per image, by point.
        progress: Told about every batch.

    Returns:
        What the samples keep per image on average, by point.
    """
    kept = []
    modules = decoder.atp
    assert modules is not None  # noqa: S101 - there is a plan
    for point, wanted in enumerate(plan):
        images: list[ImageTokens] = []
        with progress.task(f"fitting point {point + 1} of {len(plan)}", len(batches)) as advance:
            for batch in batches:
                scores, left = decoder.scores_at(batch, point)
                images += images_of(scores, left, decoder.grid)
                advance(1)
        kept.append(_fit_point(modules[point], images, wanted))
    return tuple(kept)


def _fit_point(module: AtpModule, images: Sequence[ImageTokens], wanted: float) -> float:
    for head in (module.redundancy, module.spatial):
        head.weight.zero_()
        head.bias.zero_()
    for level in _levels(module.config):
        module.spatial.bias.fill_(level)
        if _mean_kept(module, images, by_redundancy=False) <= wanted / 2:
            break
    # Tokens leave one by one as theta_r grows, each at a threshold that is known beforehand.
    leaving = [_leaving(module, image) for image in images]
    low, high = -_RANGE, _RANGE
    for _ in range(_STEPS):
        middle = (low + high) / 2
        kept = sum(_bounded(int((it > middle).sum()), len(it), module.config) for it in leaving)
        low, high = (middle, high) if kept > wanted * len(images) else (low, middle)
    module.redundancy.bias.fill_(high)
    return _mean_kept(module, images)


def _leaving(module: AtpModule, image: ImageTokens) -> Tensor:
    """The argument of theta_r's sigmoid at which each token is no longer kept, float64 [n]."""
    own, cross = image.own.double(), image.cross.double()
    never = torch.tensor(torch.inf, dtype=torch.float64, device=own.device)
    always = torch.zeros_like(never)
    _, theta_s = module.thresholds(own, cross, has_text=image.has_text)

    def margins(thresholds: tuple[Tensor, Tensor]) -> Tensor:
        return module.margins(
            own,
            cross,
            image.grid_row,
            image.grid_column,
            has_text=image.has_text,
            thresholds=thresholds,
        )

    redundancy, spatial = margins((always, never)), margins((never, theta_s))
    return torch.where(spatial > 0, never, torch.logit(redundancy.clamp(0, 1)))


def _bounded(count: int, tokens: int, config: PruningConfig) -> int:
    most = tokens if config.max_keep is None else config.max_keep
    return min(max(min(count, most), config.min_keep), tokens)


def _levels(config: PruningConfig) -> Iterable[float]:
    """Arguments of theta_s' sigmoid between the grids' scores, from the densest grid to none."""
    scores = sorted(1 - config.lambda_sample / stride**2 for stride in config.strides)
    between = [(low + high) / 2 for low, high in pairwise((*scores, 1.0))]
    return [float(torch.logit(torch.tensor(score), eps=1e-6)) for score in between]


def _mean_kept(
    module: AtpModule, images: Sequence[ImageTokens], *, by_redundancy: bool = True
) -> float:
    """What is kept per image, with both criteria or by the spatial one alone."""
    before = module.redundancy.bias.clone()
    if not by_redundancy:
        module.redundancy.bias.fill_(torch.inf)
    counts = [
        module.keep_mask(
            image.own,
            image.cross,
            torch.zeros_like(image.places),
            image.grid_row,
            image.grid_column,
            has_text=image.has_text,
        ).sum()
        for image in images
    ]
    module.redundancy.bias.copy_(before)
    return float(torch.stack(counts).double().mean())
