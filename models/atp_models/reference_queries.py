"""Whose attention a pruning point asks for, in PyTorch; named as in a bundle's manifest."""

from __future__ import annotations

import torch
from torch import Tensor


def asked_tokens(queries: str, hidden: Tensor, visual: Tensor) -> Tensor:
    """The tokens of a chunk whose attention the cross scores average.

    Args:
        queries: "text", all behind the last visual token; "last", the last of these; "raters",
            those of them that resemble the image more than most do (SparseVLM, arXiv 2410.04417).
        hidden: [1, tokens, hidden], the embedded chunk.
        visual: bool [tokens].

    Returns:
        bool [tokens]; none of them without visual tokens.
    """
    places = visual.nonzero().flatten()
    behind = torch.zeros_like(visual)
    if len(places) == 0:
        return behind
    behind[places[-1] + 1 :] = True
    rows = behind.nonzero().flatten()
    if queries == "text" or len(rows) == 0:
        return behind
    chosen = torch.zeros_like(visual)
    chosen[rows[-1:] if queries == "last" else _raters(hidden[0], places, rows)] = True
    return chosen


def _raters(hidden: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """Visual tokens share themselves out among the text; who gets more than the mean rates."""
    similarity = hidden[visual].double() @ hidden[text].double().T
    shares = similarity.softmax(dim=1).mean(dim=0)
    raters = text[shares > shares.mean()]
    return raters if len(raters) else text
