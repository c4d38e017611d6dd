"""Which words of a question judge the image: SparseVLM's raters (arXiv 2410.04417, section 3.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.selection import IndexArray


def raters(hidden: npt.NDArray[Any], visual: IndexArray) -> IndexArray:
    """The text tokens behind the image that resemble it more than the mean of them does.

    Every visual token shares itself out among the text, by the softmax of the products of their
    embeddings; who gets more than the mean share is a rater (reconstructed: the paper does not say
    along which axis the softmax runs). Where all get the same, all are.

    Args:
        hidden: T [tokens, hidden], the decoder's input.
        visual: int64 [visual], rising: where the visual tokens are.

    Returns:
        int64 [raters], rising; empty without text behind the image, or without visual tokens.
    """
    if len(visual) == 0:
        return np.arange(0)
    text = np.arange(visual[-1] + 1, len(hidden))
    if len(text) == 0:
        return text
    products = hidden[visual].astype(np.float32) @ hidden[text].astype(np.float32).T
    weights = np.exp(products - products.max(axis=1, keepdims=True)).astype(np.float64)
    shares = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
    chosen = text[shares > shares.mean()]
    return chosen if len(chosen) else text
