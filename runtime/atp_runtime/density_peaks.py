"""Clusters around the peaks of density, found with nearest neighbours.

Density peaks: Rodriguez and Laio, Science 344, 2014. The density by k nearest neighbours is that of
Du, Ding and Jia (2016), which SparseVLM (arXiv 2410.04417) recycles tokens with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]


def density_peaks(rows: npt.NDArray[Any], count: int, neighbours: int) -> IndexArray:
    """The cluster of each row.

    A row's density is exp(-m), m the mean squared distance to its nearest neighbours; its
    remoteness the distance to the nearest row that is denser, of the densest row the largest of
    all. Rows whose product of both is highest are the centres; others go with the nearest of them.
    Distances are Euclidean, divided by the root of the width; of equals the earlier comes first.

    Args:
        rows: [n, width].
        count: Of clusters, 1 to n.
        neighbours: How many, as far as there are.

    Returns:
        int64 [n], clusters being numbered by their centres' order.
    """
    squares = _mean_squares(rows.astype(np.float64))
    distance = np.sqrt(squares)
    others = np.sort(squares + np.diag(np.full(len(rows), np.inf)), axis=1)[:, :-1]
    sparseness = np.zeros(len(rows))
    if others.size:
        sparseness = others[:, :neighbours].mean(axis=1)
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.argsort(sparseness, kind="stable")] = np.arange(len(rows))
    denser = rank[np.newaxis] < rank[:, np.newaxis]
    remoteness = np.where(denser, distance, np.inf).min(axis=1)
    remoteness[rank == 0] = distance.max()
    # The logarithm of the product: of far hidden states the density itself would be zero.
    with np.errstate(divide="ignore"):
        merit = np.log(remoteness) - sparseness
    centres = np.sort(np.argsort(-merit, kind="stable")[:count])
    cluster: IndexArray = np.argmin(distance[:, centres], axis=1)
    cluster[centres] = np.arange(count)
    return cluster


def _mean_squares(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean squared differences [n, n], from products: differences would need [n, n, width]."""
    products = rows @ rows.T
    norms = np.diag(products)
    means: npt.NDArray[np.float64] = (norms[:, np.newaxis] + norms - 2 * products) / rows.shape[1]
    np.fill_diagonal(means, 0)
    # What is all but zero may come out below it.
    np.maximum(means, 0, out=means)
    return means
