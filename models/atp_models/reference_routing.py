"""VideoLLM-MoD's routed layers in PyTorch: what routed bundles are compared with.

Of arXiv 2408.16730 and of Mixture-of-Depths (arXiv 2404.02258, eq. 1), which it follows: a token i
that goes through layer f gets x_i + r_i f(x)_i, another stays x_i. f is what the whole layer adds,
attention among those that go through and feed-forward; r_i is the router's score, 1 for text.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from atp_models.reference_layers import LayerRunner, LayerStep, Tokens
from atp_models.reference_structure import StructuredRunner


@torch.inference_mode()
def run_routed(
    runner: LayerRunner | StructuredRunner,
    layer: nn.Module,
    hidden: Tensor,
    tokens: Tokens,
    through: Tensor,
    scores: Tensor,
) -> LayerStep:
    """Runs one layer on some tokens of a chunk.

    Args:
        runner: Keeps the keys and values of those that go through.
        layer: See `LayerRunner.run`.
        hidden: [1, tokens, hidden].
        tokens: What they are.
        through: int64 [kept], rising: those that go through.
        scores: The router's, [tokens].

    Returns:
        Of all tokens what entered and left, of those that went through all else.
    """
    step = runner.run(layer, hidden[:, through], tokens.keep(through))
    weights = torch.where(tokens.visual, scores, 1)[through]
    left = hidden.clone()
    left[:, through] += weights.unsqueeze(1) * (step.left - step.entered)
    return replace(step, entered=hidden, left=left)
