"""What ATP-LLaVA's training adds to the language loss (arXiv 2412.00447).

    L = L_lm + lambda_atp * L_atp + lambda_target * L_target

The lambdas are in `PruningConfig`. N_l is the soft count at a module: the sum of its mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_tokens(counts: Tensor, *, layers: Sequence[int], depth: int, tokens: int) -> Tensor:
    """N_mean: visual tokens averaged over all decoder layers, as the paper's tables count them.

    Args:
        counts: N_l [points, ...], the (soft) count that leaves each pruning point.
        layers: The first decoder layer that runs with each count.
        depth: Of the decoder.
        tokens: Visual tokens before any pruning.
    """
    lengths = torch.tensor([*layers, depth]).diff().tolist()
    total = torch.full_like(counts[0], float(tokens * layers[0]))
    for count, length in zip(counts, lengths, strict=True):
        total = total + count * length
    return total / depth


def target_loss(mean: Tensor, *, target: float, tokens: int) -> Tensor:
    """L_target = |N_mean - N_target| / N, before its weight lambda_target."""
    return (mean - target).abs() / tokens


def atp_loss(counts: Tensor, *, levels: Sequence[float], tokens: int) -> Tensor:
    """L_atp = sum over l of (N_l / N) * l, before its weight lambda_atp.

    Args:
        counts: N_l [points, ...].
        levels: l of each point. Reconstructed: whether it is the decoder's layer or the
            module's number is not told.
        tokens: N, visual tokens before any pruning.
    """
    parts = [count / tokens * level for count, level in zip(counts, levels, strict=True)]
    return torch.stack(parts).sum(0)
