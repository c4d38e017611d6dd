"""What was decided for the linear layers that share an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atp_calibration.quantisation.layer_input import LayerInput
from atp_calibration.quantisation.shared_heads import SharedHeads

INT8, INT4 = "int8", "int4"
PRECISIONS = (INT8, INT4)


@dataclass(frozen=True)
class Choice:
    """For the layers of a `Group`.

    Attributes:
        stage: Where they are.
        layers: Their names.
        precision: "int8" or "int4".
        alpha: How far outliers move from activations to weights (0 to 1); None for not at all.
        method: What found the threshold; for INT4 "gptq", or None for rounding to the nearest.
        threshold: The magnitude that the largest INT8 value of the input stands for; None where
            the input is not quantised.
        errors: Of each layer's output on the samples, as a share of its norm, by name. With
            "gptq", on tokens that it did not learn from.
    """

    stage: str
    layers: tuple[str, ...]
    precision: str
    alpha: float | None
    method: str | None
    threshold: float | None
    errors: Mapping[str, float]

    @property
    def first(self) -> str:
        """What the group is known by."""
        return self.layers[0]


def migration_scale(
    precision: str,
    alpha: float | None,
    seen: LayerInput,
    weight_rows: npt.NDArray[np.floating],
    heads: SharedHeads | None = None,
) -> npt.NDArray[np.float32]:
    """What the input is divided and the weights are multiplied by, per channel: float32 [in].

    SmoothQuant, equation 4: s = max|X|^alpha / max|W|^(1 - alpha). AWQ, equation 5: s = the mean
    of |X|, to the power of alpha. Both are divided by their geometric mean, so that FP16 holds
    what comes of it; channels that are always zero keep their scale.

    Args:
        precision: "int8" for the former, "int4" for the latter.
        alpha: None gives ones.
        seen: The input.
        weight_rows: The largest magnitudes in the weights per input channel, [in].
        heads: Where the division goes into v, which channels have one scale.
    """
    scale = np.ones(seen.channels)
    if alpha is None:
        return scale.astype(np.float32)
    largest, rows = seen.largest.astype(np.float64), weight_rows.astype(np.float64)
    mean = seen.mean
    if heads is not None:
        largest, rows = heads.tied(largest, np.max), heads.tied(rows, np.max)
        mean = heads.tied(mean, np.mean)
    alive = (largest > 0) & (rows > 0)
    if precision == INT8:
        scale[alive] = largest[alive] ** alpha / rows[alive] ** (1 - alpha)
    else:
        scale[alive] = mean[alive] ** alpha
    if alive.any():
        scale[alive] /= np.exp(np.log(scale[alive]).mean())
    return np.clip(scale, 1e-3, 1e3).astype(np.float32)
