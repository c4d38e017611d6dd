"""The pruning that a run trains for, checked for what the pruning layers can reach."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from atp_models.atp_losses import mean_tokens
from atp_models.pruning_config import PruningConfig, check_layers, default_layers
from atp_models.training.options import PruningOptions
from atp_runtime.errors import InputError

FLOOR = 4
"""`min_keep` where the checkpoint's configuration has none. Without a floor the soft counts of a
point can fall to zero, where the mask's gradient is zero as well and no token comes back."""

LAMBDA_ATP = 0.01
"""lambda_atp of a checkpoint without configuration: the smaller of the two known values, which
leaves the pull towards the target the stronger one at every point."""


def training_config(
    stored: PruningConfig | None, options: PruningOptions, *, depth: int, tokens: int
) -> PruningConfig:
    """The configuration that is trained for and written.

    Args:
        stored: The checkpoint's, None if it has none.
        options: What the user asked for.
        depth: Decoder layers.
        tokens: Visual tokens per image.

    Raises:
        InputError: Impossible pruning layers, values that are out of range, or a target that
            these layers cannot reach; the message names the lowest.
    """
    layers = options.layers or (stored.layers if stored else default_layers(depth))
    check_layers(layers, depth)
    if not layers:
        raise InputError(
            "the checkpoint has no pruning layer",
            why="without one there is no module to train.",
            fix="name the layers with --prune-at, or train with --dense.",
        )
    base = stored or PruningConfig(layers=layers, min_keep=FLOOR, lambda_atp=LAMBDA_ATP)
    given: dict[str, Any] = {
        name: value for name, value in vars(options).items() if value is not None
    }
    given = {"min_keep": base.min_keep or FLOOR, **given, "layers": tuple(layers)}
    try:
        config = dataclasses.replace(base, **given)
    except ValueError as error:
        raise InputError(
            str(error), why="the pruning cannot be configured so.", fix="see atp-train --help."
        ) from error
    _check_target(config, depth=depth, tokens=tokens)
    return config


def planned_config(
    config: PruningConfig, keep: Sequence[int], *, depth: int, tokens: int
) -> PruningConfig:
    """The configuration whose target is what a plan needs.

    Args:
        config: Of the pruning.
        keep: Tokens to keep at each point.
        depth: Decoder layers.
        tokens: Visual tokens per image.

    Raises:
        InputError: Another number of points, or counts that rise or fall below `min_keep`.
    """
    fits = len(keep) == len(config.layers) and keep[-1] >= config.min_keep
    if not fits or any(later > earlier for earlier, later in pairwise((tokens, *keep))):
        raise InputError(
            f"{','.join(map(str, keep))} is no plan for the points before layers {config.layers}",
            why=f"each point keeps a part of what is left of {tokens} tokens, at least "
            f"{config.min_keep}.",
            fix="give as many counts to --keep as there are points, none above the one before it.",
        )
    counts = torch.tensor(keep, dtype=torch.float64)
    mean = mean_tokens(counts, layers=config.layers, depth=depth, tokens=tokens)
    return dataclasses.replace(config, target_tokens=round(float(mean)))


def lowest_mean(config: PruningConfig, *, depth: int, tokens: int) -> float:
    """The all-layer average when every point keeps `min_keep` tokens."""
    first = config.layers[0]
    return (first * tokens + (depth - first) * min(config.min_keep, tokens)) / depth


def _check_target(config: PruningConfig, *, depth: int, tokens: int) -> None:
    lowest = lowest_mean(config, depth=depth, tokens=tokens)
    if config.target_tokens < lowest:
        raise InputError(
            f"an average of {config.target_tokens} visual tokens cannot be reached",
            why=f"layers 0 to {config.layers[0] - 1} of {depth} run with all {tokens} tokens and "
            f"the others with at least {config.min_keep}, which is {lowest:.1f} on average.",
            fix=f"give --target-tokens {math.ceil(lowest)} or more, or prune earlier with "
            "--prune-at.",
        )
    if config.target_tokens > tokens:
        raise InputError(
            f"an average of {config.target_tokens} visual tokens cannot be reached",
            why=f"an image has {tokens}.",
            fix=f"give --target-tokens {tokens} or less.",
        )
