"""INT4 weights behind a migration, rounded to the nearest or with error feedback."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from atp_calibration.quantisation.error_feedback import ErrorFeedback
from atp_calibration.quantisation.layer_input import LayerInput
from atp_calibration.quantisation.stored_weights import quantise_blocks

GPTQ = "gptq"
"""The method of `Choice` for error feedback."""
_MEASURED = 4  # of so many remembered tokens one is not learned from

Int8 = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]


class Int4Rounding:
    """Rounds the weights that read an input.

    Args:
        seen: The input.
        scale: What the migration divides it by, float32 [in].
        block: Inputs that share a scale.

    Attributes:
        rows: The remembered tokens behind the migration, float32 [remembered, in].
        counts: How many tokens each stands for, float64 [remembered].
        measured: Those that error feedback does not learn from, bool [remembered].
    """

    def __init__(self, seen: LayerInput, scale: Float32, block: int) -> None:
        rows, self.counts = seen.tokens()
        self.rows: Float32 = rows / scale
        self.measured = np.arange(len(rows)) % _MEASURED == _MEASURED - 1
        self._block = block

    def round(
        self, weight: npt.NDArray[np.floating], *, feedback: bool = False
    ) -> tuple[Int8, Float32]:
        """INT4 values and their scales, see `quantise_blocks`.

        Args:
            weight: Behind the migration, [in, out].
            feedback: Whether inputs make up for each other's errors.
        """
        values, scales = quantise_blocks(weight, self._block, self._importance)
        if feedback:
            values = self._feedback.round(weight, scales)
        return values, scales

    @cached_property
    def _importance(self) -> npt.NDArray[np.float64]:
        """Mean square of each channel: float64 [in]."""
        squares = np.square(self.rows.astype(np.float64))
        importance: npt.NDArray[np.float64] = self.counts @ squares / self.counts.sum()
        return importance

    @cached_property
    def _feedback(self) -> ErrorFeedback:
        taught = ~self.measured
        return ErrorFeedback.of(self.rows[taught], self.counts[taught])
