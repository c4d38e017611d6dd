"""What ATP-LLaVA's training adds to the language loss (arXiv 2412.00447).

    L = L_lm + lambda_atp * L_atp + lambda_target * L_target

The lambdas are in `PruningConfig`. N_l is the soft count at a module: the sum of its mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_tokens(
    counts: Tensor, *, layers: Sequence[int], depth: int, tokens: int | Tensor
) -> Tensor:
    """N_mean: visual tokens averaged over all decoder layers, as the paper's tables count them.

    Args:
        counts: N_l [points, ...], the (soft) count that leaves each pruning point.
        layers: The first decoder layer that runs with each count.
        depth: Of the decoder.
        tokens: Visual tokens before any pruning, one number or [...].
    """
    lengths = torch.tensor([*layers, depth]).diff().tolist()
    total = torch.zeros_like(counts[0]) + tokens * layers[0]
    for count, length in zip(counts, lengths, strict=True):
        total = total + count * length
    return total / depth


def target_loss(mean: Tensor, *, target: float, tokens: int) -> Tensor:
    """L_target = |N_mean - N_target| / N, before its weight lambda_target."""
    return (mean - target).abs() / tokens


def module_levels(points: int) -> tuple[float, ...]:
    """The l of each module: its number over the number of modules, so that the last one's is 1.

    Reconstructed. With the decoder's layer for l, the paper's lambda_atp of 0.01 to 0.05 would
    pull harder at the counts than lambda_target of 0.2 does, whose pull at a module is at most
    the share of the layers it feeds, and nothing would hold them at the target. Later modules
    still weigh more.
    """
    return tuple((number + 1) / points for number in range(points))


def atp_loss(counts: Tensor, *, levels: Sequence[float], tokens: int | Tensor) -> Tensor:
    """L_atp = sum over l of (N_l / N) * l, before its weight lambda_atp.

    Args:
        counts: N_l [points, ...].
        levels: l of each point. Reconstructed: whether it is the decoder's layer or the
            module's number is not told; see `module_levels`.
        tokens: N, visual tokens before any pruning, one number or [...].
    """
    parts = [count / tokens * level for count, level in zip(counts, levels, strict=True)]
    return torch.stack(parts).sum(0)
