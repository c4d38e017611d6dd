"""The ATP modules (ATP-LLaVA, arXiv 2412.00447) in PyTorch, for training and for parity.

A module predicts two thresholds per image from the attention of the layer before it. The
device computes the same in NumPy (`atp_runtime.atp`); what is marked "reconstructed" there
and in `PruningConfig` is so here. Training masks softly (`soft_mask`; the losses are in
`atp_models.atp_losses`), inference drops tokens.

Scores are [..., n]: the n visual tokens of one image, leading axes are a batch. Arithmetic
follows the scores' dtype whatever the weights' is; give float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from atp_models.pruning_config import PruningConfig
from atp_runtime.errors import InputError

FILE_NAME = "atp_modules.safetensors"
QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90)
FEATURES = 2 * (2 + len(QUANTILES)) + 2
HIDDEN = 32
_UPPER_QUARTILES = (2 + QUANTILES.index(0.75), 4 + len(QUANTILES) + QUANTILES.index(0.75))
_START_QUARTILES = {"self": _UPPER_QUARTILES[:1], "cross": _UPPER_QUARTILES[1:]}
_START_SLOPE = 4.0


def normalise(scores: Tensor, how: str = "min_max") -> Tensor:
    """Scales scores [..., n] to 0..1 by their extremes; 0 where they are all equal.

    Reconstructed; "none" leaves them as they are.
    """
    if how == "none":
        return scores
    low, high = scores.aminmax(dim=-1, keepdim=True)
    span = high - low
    return (scores - low) / torch.where(span > 0, span, 1)


def redundancy_scores(
    s_self: Tensor, s_cross: Tensor, *, has_text: bool, how: str = "both"
) -> Tensor:
    """S_red [..., n]; `how` is `PruningConfig.redundancy`.

    "both" is (S_self + S_cross) / 2, and "self", "cross" and "none" its ablations. Without
    text after the image S_self stands in for both others, and with "none" the criterion is
    off: -inf, which is above no threshold.
    """
    if how == "none":
        return torch.full_like(s_self, -torch.inf)
    if how == "self" or not has_text:
        return s_self
    return s_cross if how == "cross" else (s_self + s_cross) / 2


def spatial_scores(
    row: Tensor, column: Tensor, *, lambda_sample: float, strides: Sequence[int]
) -> Tensor:
    """S_sp = 1 - lambda_sample * R [n] on the sparsest grid a token lies on, 0 elsewhere.

    Without strides the criterion is off: -inf, which is above no threshold.

    Args:
        row: int64 [n], -1 for a feature without a place.
        column: int64 [n].
        lambda_sample: How fast a denser grid loses score.
        strides: Of the grids, rising; R = 1 / stride^2.
    """
    elsewhere = 0.0 if strides else -torch.inf
    spatial = torch.full(row.shape, elsewhere, dtype=torch.float64, device=row.device)
    for stride in strides:
        on_grid = (row >= 0) & (row % stride == 0) & (column % stride == 0)
        spatial[on_grid] = 1 - lambda_sample / stride**2
    return spatial


def score_features(s_self: Tensor, s_cross: Tensor, attention: Tensor) -> Tensor:
    """What the thresholds are predicted from, x [..., 16]. Reconstructed.

    Args:
        s_self: [..., n], normalised.
        s_cross: [..., n], normalised.
        attention: [...], the sum of the raw cross scores.
    """
    self_statistics, self_offsets = _statistics(s_self)
    cross_statistics, cross_offsets = _statistics(s_cross)
    scale = self_offsets.square().sum(-1) * cross_offsets.square().sum(-1)
    correlation = (self_offsets * cross_offsets).sum(-1) / _root(scale, zero=1.0)
    total = torch.log(attention.clamp_min(0) + 1e-6)
    rest = torch.stack([correlation, total], dim=-1)
    return torch.cat([self_statistics, cross_statistics, rest], dim=-1)


def _statistics(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, deviation and quantiles [..., 7] of scores [..., n]; and them less their mean."""
    ordered = scores.sort(dim=-1).values
    last = ordered.shape[-1] - 1
    constant = ordered[..., 0] == ordered[..., last]
    mean = torch.where(constant, ordered[..., 0], scores.mean(-1))
    offsets = scores - mean.unsqueeze(-1)
    parts = [mean, _root(offsets.square().mean(-1), zero=0.0)]
    for quantile in QUANTILES:
        below = math.floor(quantile * last)
        low, high = ordered[..., below], ordered[..., min(below + 1, last)]
        parts.append(low + (high - low) * (quantile * last - below))
    return torch.stack(parts, dim=-1), offsets


def _root(square: Tensor, *, zero: float) -> Tensor:
    """The square root, `zero` at 0, where the root itself has no finite gradient."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), zero)


def soft_mask(margins: Tensor, temperature: float) -> Tensor:
    """M = max(sigmoid((S_red - theta_r) T), sigmoid((S_sp - theta_s) T)) [..., n].

    The sigmoid rises, so it is taken once, of the larger margin.

    Args:
        margins: [..., n], see `AtpModule.margins`.
        temperature: T.
    """
    return torch.sigmoid(margins * temperature)


class AtpModule(nn.Module):
    """One pruning point: predicts the thresholds of an image, and masks or drops by them."""

    def __init__(self, config: PruningConfig) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Linear(FEATURES, HIDDEN)
        self.redundancy = nn.Linear(HIDDEN, 1)
        self.spatial = nn.Linear(HIDDEN, 1)

    def thresholds(
        self, scores_self: Tensor, scores_cross: Tensor, *, has_text: bool = True
    ) -> tuple[Tensor, Tensor]:
        """theta_r, theta_s = sigmoid(head_r(z)), sigmoid(head_s(z)) with z = shared(features).

        Args:
            scores_self: [..., n], as the attention gives them.
            scores_cross: [..., n], likewise.
            has_text: Whether text follows the image; if not, cross scores are not looked at.

        Returns:
            theta_r and theta_s, [...] each.
        """
        s_self, s_cross = self._normalised(scores_self, scores_cross, has_text)
        raw = scores_cross if has_text else torch.zeros_like(scores_cross)
        hidden = F.relu(_apply(self.shared, score_features(s_self, s_cross, raw.sum(-1))))
        theta_r = torch.sigmoid(_apply(self.redundancy, hidden)).squeeze(-1)
        return theta_r, torch.sigmoid(_apply(self.spatial, hidden)).squeeze(-1)

    def margins(
        self,
        scores_self: Tensor,
        scores_cross: Tensor,
        row: Tensor,
        column: Tensor,
        *,
        has_text: bool = True,
        thresholds: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """max(S_red - theta_r, S_sp - theta_s) [..., n]: above 0 where a token is kept.

        Args:
            scores_self: [..., n], as the attention gives them.
            scores_cross: [..., n], likewise.
            row: int64 [n], the row of each token's patch, -1 without a place on the grid.
            column: int64 [n], likewise.
            has_text: Whether text follows the image.
            thresholds: If they are not to be predicted from these scores.
        """
        if thresholds is None:
            thresholds = self.thresholds(scores_self, scores_cross, has_text=has_text)
        theta_r, theta_s = thresholds
        s_self, s_cross = self._normalised(scores_self, scores_cross, has_text)
        how = self.config.redundancy
        red = redundancy_scores(s_self, s_cross, has_text=has_text, how=how)
        spatial = spatial_scores(
            row, column, lambda_sample=self.config.lambda_sample, strides=self.config.strides
        )
        return torch.maximum(
            red - theta_r.unsqueeze(-1), spatial.to(red.dtype) - theta_s.unsqueeze(-1)
        )

    def _normalised(
        self, scores_self: Tensor, scores_cross: Tensor, has_text: bool
    ) -> tuple[Tensor, Tensor]:
        s_self = normalise(scores_self, self.config.normalisation)
        if not has_text:
            return s_self, torch.zeros_like(s_self)
        return s_self, normalise(scores_cross, self.config.normalisation)

    @torch.no_grad()
    def keep_mask(
        self,
        scores_self: Tensor,
        scores_cross: Tensor,
        image: Tensor,
        row: Tensor,
        column: Tensor,
        *,
        has_text: bool = True,
    ) -> Tensor:
        """Which visual tokens of a prompt stay, each image by its own thresholds: bool [n].

        keep iff S_red > theta_r or S_sp > theta_s, within `min_keep` and `max_keep` per image
        (the best by margin, of equal ones the earlier). Computed in float64, so that it says
        the same as the device.

        Args:
            scores_self: [n], all images' tokens in the sequence's order.
            scores_cross: [n], likewise.
            image: int64 [n], the number of each token's image.
            row: int64 [n].
            column: int64 [n].
            has_text: Whether text follows the images.
        """
        kept = torch.zeros_like(image, dtype=torch.bool)
        for number in torch.unique(image):
            at = (image == number).nonzero().squeeze(-1)
            margins = self.margins(
                scores_self[at].double(),
                scores_cross[at].double(),
                row[at],
                column[at],
                has_text=has_text,
            )
            count = int((margins > 0).sum())
            if self.config.max_keep is not None:
                count = min(count, self.config.max_keep)
            count = max(count, self.config.min_keep)
            best = margins.sort(descending=True, stable=True).indices[:count]
            kept[at[best]] = True
        return kept


def _apply(layer: nn.Linear, value: Tensor) -> Tensor:
    return F.linear(value, layer.weight.to(value.dtype), layer.bias.to(value.dtype))


class AtpModules(nn.Module):
    """The modules of all pruning points, in the order of `PruningConfig.layers`."""

    def __init__(self, config: PruningConfig) -> None:
        super().__init__()
        self.config = config
        self.points = nn.ModuleList(AtpModule(config) for _ in config.layers)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> AtpModule:
        return cast("AtpModule", self.points[index])

    @torch.no_grad()
    def initialise(self, seed: int = 0) -> AtpModules:
        """Sets the weights from which training starts, and returns the modules.

        theta_r starts near the mean of the upper quartiles of what S_red is made of, theta_s
        at 0.5, between the grids of stride 2 and 4. Random scores of any spread then keep
        about a quarter of their tokens, most of them by S_red. They keep fewer where S_red is
        made of a cross score with few peaks alone, and the grid of stride 4, a sixteenth,
        where there is no S_red. The hidden units that this does not need start at random, with
        no say in the thresholds yet.
        """
        generator = torch.Generator().manual_seed(seed)
        for index in range(len(self)):
            _initialise(self[index], generator)
        return self

    def save(self, path: Path) -> None:
        """Writes `atp_modules.safetensors`, float32, tensors "points.{i}.shared.weight" etc."""
        state = {name: value.detach().float().cpu() for name, value in self.state_dict().items()}
        # Not save_file: its files are readable to their owner alone.
        path.write_bytes(save(state))

    @classmethod
    def load(cls, path: Path, config: PruningConfig) -> AtpModules:
        """Reads what `save` wrote.

        Raises:
            InputError: The file is missing or damaged, or a tensor is missing, unknown, of
                another shape or not finite; the message names it.
        """
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise _unusable(path, str(error), "the ATP modules cannot be read.") from error
        modules = cls(config)
        expected = modules.state_dict()
        for name in sorted({*expected, *tensors}):
            _check_tensor(path, name, tensors.get(name), expected.get(name))
        modules.load_state_dict(tensors)
        return modules


def _check_tensor(path: Path, name: str, found: Tensor | None, expected: Tensor | None) -> None:
    if found is None or expected is None:
        word = "is missing" if found is None else "is unknown"
        why = "each pruning layer of the configuration needs one whole module, and no more."
        raise _unusable(path, f"tensor {name!r} {word}", why)
    if found.shape != expected.shape:
        why = f"it must be {list(expected.shape)}."
        raise _unusable(path, f"tensor {name!r} is {list(found.shape)}", why)
    if not found.isfinite().all():
        why = "no threshold can be computed from it."
        raise _unusable(path, f"tensor {name!r} has NaN or infinite values", why)


def _unusable(path: Path, what: str, why: str) -> InputError:
    fix = "copy the checkpoint again, or train the modules for this pruning_config.json."
    return InputError(f"{path}: {what}", why=why, fix=fix)


def _initialise(point: AtpModule, generator: torch.Generator) -> None:
    """See `AtpModules.initialise`.

    theta_r is to be near u, the mean of the upper quartiles. The first hidden unit is u,
    and sigmoid(4 (u - 1/2)), the tangent of its logit, is within 0.04 of u from 0.2 to 0.8.
    """
    bound = 1 / math.sqrt(FEATURES)
    for parameter in (point.shared.weight, point.shared.bias):
        parameter.uniform_(-bound, bound, generator=generator)
    point.shared.weight[0] = 0
    quartiles = _START_QUARTILES.get(point.config.redundancy, _UPPER_QUARTILES)
    point.shared.weight[0, list(quartiles)] = 1 / len(quartiles)
    point.shared.bias[0] = 0
    for head in (point.redundancy, point.spatial):
        head.weight.zero_()
        head.bias.zero_()
    point.redundancy.weight[0, 0] = _START_SLOPE
    point.redundancy.bias.fill_(-_START_SLOPE / 2)
