"""Rounds a weight input by input, the inputs that are left making up for each error.

GPTQ (arXiv 2210.17323): with H = X^T X of the activations X, what rounding one row of a weight
takes from the outputs is given to the rows that are not rounded yet, by the Cholesky factor of
H^-1. Rows go by falling activations, as its authors' `--act-order` does; the scales of blocks are
settled before, so that the order costs nothing at inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atp_calibration.quantisation.stored_weights import LARGEST_INT4, SMALLEST_INT4

DAMPING = 0.05
"""Of H's diagonal, as a share of its mean. With fewer tokens than inputs H says nothing about most
directions; this keeps errors small there, too."""
WIDEST = 4096
"""Inputs that are looked at together: H takes the square of them, and its inverse as much."""
_LAZY = 64  # rows whose errors reach those behind them in one product

Int8 = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ErrorFeedback:
    """What the rows of a weight can make up for, the same for all weights that read an input.

    Attributes:
        parts: For each `WIDEST` inputs: their order, int64 [inputs], and in that order the upper
            Cholesky factor of the inverse of H, float32 [inputs, inputs].
    """

    parts: tuple[tuple[npt.NDArray[np.int64], Float32], ...]

    @classmethod
    def of(cls, rows: Float32, counts: npt.NDArray[np.float64]) -> ErrorFeedback:
        """Learns from activations.

        Args:
            rows: Tokens, float32 [tokens, in].
            counts: How many tokens each stands for, float64 [tokens].
        """
        begins = range(0, rows.shape[1], WIDEST)
        return cls(tuple(_part(rows[:, begin : begin + WIDEST], counts) for begin in begins))

    def round(self, weight: npt.NDArray[np.floating], scales: Float32) -> Int8:
        """INT4 values for scales that are settled.

        Args:
            weight: [in, out].
            scales: Of its blocks of inputs, float32 [blocks, out].

        Returns:
            int8 [in, out] of -8 to 7.
        """
        values = np.empty(weight.shape, np.int8)
        each = np.repeat(scales, len(weight) // len(scales), axis=0)
        begin = 0
        for order, factor in self.parts:
            places = begin + order
            values[places] = _rounded(weight[places].astype(np.float32), each[places], factor)
            begin += len(order)
        return values


def _part(rows: Float32, counts: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], Float32]:
    wide = rows.astype(np.float64)
    hessian = (wide * counts[:, None]).T @ wide
    power = np.diag(hessian).copy()
    order = np.argsort(-power, kind="stable")
    if not power.any():
        return order, np.eye(len(order), dtype=np.float32)
    hessian[np.diag_indices_from(hessian)] += DAMPING * power.mean()
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    return order, np.linalg.cholesky(inverse).T.astype(np.float32)


def _rounded(weight: Float32, scales: Float32, factor: Float32) -> Int8:
    """Changes `weight`, float32 [in, out], on the way."""
    values = np.empty(weight.shape, np.int8)
    for begin in range(0, len(weight), _LAZY):
        end = min(begin + _LAZY, len(weight))
        errors = np.empty((end - begin, weight.shape[1]), np.float32)
        for at in range(begin, end):
            steps = np.clip(np.rint(weight[at] / scales[at]), SMALLEST_INT4, LARGEST_INT4)
            values[at] = steps
            errors[at - begin] = (weight[at] - steps * scales[at]) / factor[at, at]
            weight[at + 1 : end] -= np.outer(factor[at, at + 1 : end], errors[at - begin])
        weight[end:] -= factor[begin:end, end:].T @ errors
    return values
