"""Teaches the layers before the pruning points where to look, before thresholds are learnt.

A decoder trained densely has no reason to let its early attention tell pictures from background,
and pruning that reads it keeps the wrong patches. Gradients through soft masks mend that in
thousands of steps; the scenes know what is where, so a few minutes do. S_self learns to stand
out where a picture is, S_cross where what the question names is: each layer by itself, through
a low-rank change of its query and key projections alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from atp_models.atp import normalise
from atp_models.demo.curriculum.looks import Look
from atp_models.training.rows import PREFIX, TokenBatch
from atp_models.training.soft_decoder import SoftDecoder

RANK = 24
_LEARNING_RATE = 3e-3
_RISE = 10  # steps
_SHARPNESS = 8.0  # of scores between 0 and 1, as logits
_CHANGE_WEIGHT = 6.0  # of the layer's change
_TINY = 1e-9
_PROJECTIONS = ("q_proj", "k_proj")


@dataclass(frozen=True, eq=False)
class Lesson:
    """A packed row about one image.

    Attributes:
        batch: One row; its visual tokens may be thinned.
        look: Of all patches; question i is block i + 1.
    """

    batch: TokenBatch
    look: Look


@dataclass(frozen=True)
class Schedule:
    """How lessons are learnt from.

    Attributes:
        steps: Of the optimiser.
        rows: Lessons per step.
        cross_weight: Of the loss of S_cross; that of S_self weighs 1.
        seed: Of what the low-rank changes begin with.
    """

    steps: int
    rows: int
    cross_weight: float
    seed: int


def warm_up_scorers(
    decoder: SoftDecoder,
    layers: Sequence[int],
    lessons: Iterator[Lesson],
    *,
    schedule: Schedule,
    half: bool,
    report: Callable[[str], None],
) -> dict[str, Tensor]:
    """Changes the projections of some decoder layers in place.

    Args:
        decoder: Without modules; all its weights frozen.
        layers: Those whose attention pruning points read, rising.
        lessons: At least as many as the schedule takes.
        schedule: How many, and how they are learnt from.
        half: Whether products are bfloat16's.
        report: Called with a line of text now and then.

    Returns:
        The changed weights, by canonical name.
    """
    changed = {
        f"model.language_model.layers.{layer}.self_attn.{name}": _projection(decoder, layer, name)
        for layer in layers
        for name in _PROJECTIONS
    }
    generator = torch.Generator().manual_seed(schedule.seed)
    changes = [_LowRank(linear, generator) for linear in changed.values()]
    for linear, change in zip(changed.values(), changes, strict=True):
        parametrize.register_parametrization(linear.float(), "weight", change)
    learnt = [parameter for change in changes for parameter in change.parameters()]
    optimiser = torch.optim.AdamW(learnt, lr=_LEARNING_RATE, weight_decay=0.0)
    weights = torch.tensor([1.0, schedule.cross_weight, _CHANGE_WEIGHT])
    steps, rows = schedule.steps, schedule.rows
    for step in range(steps):
        rate = min(1, (step + 1) / _RISE) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * rate
        optimiser.zero_grad()
        losses = torch.zeros(len(layers), len(weights))
        for _ in range(rows):
            # Entered anew each time, since it keeps what it cast until it ends.
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found = _losses(decoder, layers, next(lessons), changes)
            ((found * weights).sum() / rows).backward()  # type: ignore[no-untyped-call]
            losses += found.detach() / rows
        optimiser.step()
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            told = ", ".join(
                f"layer {layer} {own:.3f} {cross:.3f} {change:.3f}"
                for layer, (own, cross, change) in zip(layers, losses.tolist(), strict=True)
            )
            report(f"scorers: step {step} of {steps}, S_self, S_cross and change: {told}")
    for linear in changed.values():
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
    return {f"{name}.weight": linear.weight.detach() for name, linear in changed.items()}


class _LowRank(nn.Module):
    """A weight plus a product of two narrow matrices, which alone is learnt."""

    def __init__(self, linear: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        down = torch.randn(RANK, linear.in_features, generator=generator)
        self.down = nn.Parameter(down / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK))
        self.is_on = True

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down if self.is_on else weight


@contextmanager
def _switched_off(changes: Iterable[_LowRank]) -> Iterator[None]:
    for change in changes:
        change.is_on = False
    yield
    for change in changes:
        change.is_on = True


def _projection(decoder: SoftDecoder, layer: int, name: str) -> nn.Linear:
    linear = decoder.llava.model.language_model.layers[layer].self_attn.get_submodule(name)
    assert isinstance(linear, nn.Linear)  # noqa: S101 - as in every LLaMA
    return linear


def _losses(
    decoder: SoftDecoder, layers: Sequence[int], lesson: Lesson, changes: Sequence[_LowRank]
) -> Tensor:
    """Of S_self and S_cross of each layer, and its change [layers, 3]."""
    batch = lesson.batch
    visual = batch.visual[0]
    patches = batch.features[0, visual]
    own_wanted, certain = lesson.look.pictures[patches], lesson.look.certain[patches]
    asked = lesson.look.asked[:, patches]
    losses = []
    for layer in decoder.scored_layers(batch, layers, lambda: _switched_off(changes)):
        own = normalise(layer.own[visual])
        loss_own = F.binary_cross_entropy_with_logits(
            _SHARPNESS * (own - 0.5)[certain], own_wanted[certain].float()
        )
        loss_cross = _look_loss(layer.query, layer.key, batch, asked)
        losses.append(torch.stack([loss_own, loss_cross, layer.change]))
    return torch.stack(losses)


def _look_loss(query: Tensor, key: Tensor, batch: TokenBatch, asked: Tensor) -> Tensor:
    """How far S_cross is from lying evenly on what is asked about: cross-entropy less its floor."""
    blocks, visual = batch.blocks[0], batch.visual[0]
    rows = (batch.asking[0] & (blocks > PREFIX)).nonzero().flatten()
    own_block = blocks == blocks[rows].unsqueeze(1)
    seen = ((blocks == PREFIX) | own_block) & (torch.arange(len(blocks)) <= rows.unsqueeze(1))
    grouped = torch.unflatten(query[:, rows], 0, (len(key), -1)).flatten(1, 2)
    products = (grouped @ key.transpose(1, 2)).view(len(query), len(rows), -1)
    attended = products.masked_fill(~seen, -torch.inf).softmax(-1)[:, :, visual].mean(0)
    block = torch.arange(PREFIX + 1, PREFIX + 1 + len(asked))
    total = (blocks[rows] == block.unsqueeze(1)).float() @ attended
    share = total / total.sum(1, keepdim=True)
    size = asked.sum(1)
    known = size > 0
    if not bool(known.any()):
        return query.sum() * 0
    distance = -((share + _TINY).log() * asked).sum(1)[known] / size[known] - size[known].log()
    mean: Tensor = distance.mean()
    return mean
