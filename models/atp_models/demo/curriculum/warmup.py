"""Teaches the projector to say in words what each patch shows, before the decoder is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atp_models.demo.curriculum.patch_words import BACKGROUND, NONE, PatchLabels, PatchWords

STEPS = 450
_BATCH = 4096
_LEARNING_RATE = 2e-3
_RISE = 30  # steps
_BACKGROUND_SHARE = 0.06  # of the patches without a picture; the others are a fifth of all
# The dot products of a vector with the words become logits by these factors.
_NOUN_SHARPNESS, _COLOUR_SHARPNESS = 2.0, 4.0
_COLOUR_WEIGHT, _TARGET_WEIGHT = 0.5, 3.0
_REPORTS = 5


def warm_up(
    projector: nn.Module,
    features: Callable[[int], Tensor],
    labels: Sequence[PatchLabels],
    words: PatchWords,
    *,
    seed: int,
    report: Callable[[str], None],
    steps: int = STEPS,
) -> float:
    """Fits the projector to the words of patches: squared distance, and telling words apart.

    Args:
        projector: LLaVA's, `linear_1`, GELU, `linear_2`; changed in place.
        features: Gives the tower's features float [GRID * GRID, width] of a scene by number.
        labels: Of the scenes.
        words: What to say.
        seed: Of the choice of patches.
        report: Called with a line of text now and then.
        steps: Of the optimiser.

    Returns:
        The share of patches of the last twentieth of the scenes, not trained on, whose noun is
        the nearest word.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = max(1, len(labels) // 20)
    train = _Patches.gather(features, labels[:-held_out], generator)
    last = range(len(labels) - held_out, len(labels))
    test = _Patches.gather(lambda n: features(last[n]), labels[-held_out:], generator)
    _standardise(projector, train.feature)
    optimiser = torch.optim.AdamW(projector.parameters(), lr=_LEARNING_RATE)
    for step in range(steps):
        rate = min(1, (step + 1) / _RISE) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * rate
        at = torch.randint(len(train), (_BATCH,), generator=generator)
        loss = _loss(projector, train.at(at), words)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % (steps // _REPORTS) == 0:
            right = _accuracy(projector, test, words)
            report(f"warm-up: step {step} of {steps}, loss {loss:.3f}, nouns {100 * right:.1f} %")
    return _accuracy(projector, test, words)


class _Patches:
    """Patches of many scenes with their labels, [n, ...] each."""

    def __init__(self, feature: Tensor, labels: Tensor) -> None:
        self.feature = feature
        self._labels = labels

    @classmethod
    def gather(
        cls,
        features: Callable[[int], Tensor],
        labels: Sequence[PatchLabels],
        generator: torch.Generator,
    ) -> _Patches:
        taken, known = [], []
        for number, scene in enumerate(labels):
            lucky = torch.rand(len(scene.noun), generator=generator) < _BACKGROUND_SHARE
            chosen = (scene.certain & ((scene.noun != BACKGROUND) | lucky)).nonzero().flatten()
            taken.append(features(number)[chosen].half())
            parts = (scene.noun[chosen], scene.colour[chosen], scene.size[chosen], chosen)
            known.append(torch.stack(parts))
        return cls(torch.cat(taken), torch.cat(known, dim=1))

    def __len__(self) -> int:
        return len(self.feature)

    def at(self, chosen: Tensor) -> _Patches:
        return _Patches(self.feature[chosen], self._labels[:, chosen])

    @property
    def labels(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noun, colour, size and patch number, int64 [n] each."""
        noun, colour, size, patch = self._labels
        return noun, colour, size, patch


def _loss(projector: nn.Module, patches: _Patches, words: PatchWords) -> Tensor:
    said: Tensor = projector(patches.feature.float())
    noun, colour, size, patch = patches.labels
    target = words.targets(noun, colour, size, patch)
    distance = F.mse_loss(said, target) / target.square().mean()
    nouns = F.cross_entropy(_NOUN_SHARPNESS * (said @ _centred(words.nouns).T), noun)
    coloured = colour != NONE
    colours = _COLOUR_SHARPNESS * (said[coloured] @ _centred(words.colours).T)
    # The sum, divided: a batch without coloured pictures then gives 0 instead of NaN.
    total = F.cross_entropy(colours, colour[coloured], reduction="sum")
    return nouns + _COLOUR_WEIGHT * total / coloured.sum().clamp_min(1) + _TARGET_WEIGHT * distance


@torch.no_grad()
def _accuracy(projector: nn.Module, patches: _Patches, words: PatchWords) -> float:
    said = projector(patches.feature.float())
    nearest = (said @ _centred(words.nouns).T).argmax(1)
    return float((nearest == patches.labels[0]).float().mean())


def _centred(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(0)


@torch.no_grad()
def _standardise(projector: nn.Module, features: Tensor) -> None:
    """Lets the first layer begin with inputs of mean 0 and deviation 1."""
    values = features[:200_000].float()
    linear = projector.get_submodule("linear_1")
    assert isinstance(linear, nn.Linear)  # noqa: S101 - as in every LLaVA
    unit = linear.weight / (linear.weight.square().mean().sqrt() * math.sqrt(values.shape[1]))
    linear.weight.copy_(unit / values.std(0))
    linear.bias.copy_(-(linear.weight @ values.mean(0)))
