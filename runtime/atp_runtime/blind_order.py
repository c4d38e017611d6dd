"""Orders of an image's tokens that look at no score: what a rule that looks must beat."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]
Order = npt.NDArray[np.float64]


def spread_order(row: IndexArray, column: IndexArray) -> Order:
    """How early each of n tokens comes if any number of the first shall lie evenly on the image.

    The coarsest grid comes first, then what the next finer one adds: the bits of row and column,
    interleaved, from the last to the first. So the first tokens of the survivors of a pruning are
    a coarser grid again.

    Args:
        row: int64 [n], -1 for a token without a place; such come last.
        column: int64 [n], likewise.

    Returns:
        float64 [n], the earliest lowest.
    """
    bits = max(int(max(row.max(), column.max())).bit_length(), 1)
    order = np.zeros(len(row))
    for bit in range(bits):
        weight = 4.0 ** (bits - 1 - bit)
        order += weight * (2 * (row >> bit & 1) + (column >> bit & 1))
    return np.where(row < 0, 4.0**bits, order)


def random_order(scores: npt.NDArray[np.float32]) -> Order:
    """Of n tokens; equal scores, which are of the same image, give the same order.

    Args:
        scores: float32 [n]; only their bytes matter.

    Returns:
        float64 [n], the earliest lowest.
    """
    random = np.random.default_rng(zlib.crc32(scores.tobytes()))
    return random.permutation(len(scores)).astype(np.float64)
