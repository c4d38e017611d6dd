"""Searches how to quantise the layers of a group: by the error of their outputs on the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atp_calibration.quantisation.choice import INT8, Choice, migration_scale
from atp_calibration.quantisation.groups import Group
from atp_calibration.quantisation.histogram import Histogram
from atp_calibration.quantisation.int4 import GPTQ, Int4Rounding
from atp_calibration.quantisation.layer_input import LayerInput
from atp_calibration.quantisation.stored_weights import dequantise_blocks, quantise_weight
from atp_calibration.quantisation.thresholds import LEVELS, METHODS, find_thresholds

AUTO = "auto"
RANGES = (AUTO, *METHODS)
_SMOOTHING = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SCALING = tuple(step / 10 for step in range(1, 11))
_ALIKE = 0.02  # thresholds this close to each other are tried once

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for.

    Attributes:
        precision: "int8" (weights and activations) or "int4" (weights alone).
        ranges: One of `METHODS`, or "auto" for the best of them, layer by layer.
        block_size: Inputs that share a scale in INT4.
    """

    precision: str
    ranges: str = AUTO
    block_size: int = 64


def search(
    stage: str,
    group: Group,
    seen: LayerInput,
    weights: Sequence[npt.NDArray[np.floating]],
    options: SearchOptions,
) -> Choice:
    """The choice with the least error, summed over the group's layers.

    Args:
        stage: Where the group is.
        group: The layers.
        seen: Their input.
        weights: [in, out] of each layer.
        options: What is searched for.
    """
    wide = [weight.astype(np.float32) for weight in weights]
    trial = _Trial.of(*seen.tokens(), wide)
    alphas = _alphas(group, options.precision)
    heads = group.fold.heads if group.fold else None
    rows = weight_rows(wide)
    scales = {
        alpha: migration_scale(options.precision, alpha, seen, rows, heads) for alpha in alphas
    }
    candidates = (
        candidate
        for alpha, scale in scales.items()
        for candidate in _candidates(alpha, scale, seen, trial, options)
    )
    best = min(candidates, key=lambda it: sum(it.errors))
    if options.precision != INT8:
        best = _with_feedback(best, scales[best.alpha], seen, wide, options)
    errors = {name: float(e) for name, e in zip(group.layers, best.errors, strict=True)}
    return Choice(
        stage, group.layers, options.precision, best.alpha, best.method, best.threshold, errors
    )


def weight_rows(weights: Sequence[npt.NDArray[np.floating]]) -> Float32:
    """The largest magnitude per input channel, over all these weights: float32 [in]."""
    rows: Float32 = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    return rows.astype(np.float32)


@dataclass(frozen=True)
class _Candidate:
    alpha: float | None
    method: str | None
    threshold: float | None
    errors: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Trial:
    """Tokens with their weights, the layers and their exact outputs."""

    rows: Float32
    counts: npt.NDArray[np.float64]
    weights: Sequence[Float32]
    outputs: Sequence[Float32]
    powers: Sequence[float]

    @classmethod
    def of(
        cls, rows: Float32, counts: npt.NDArray[np.float64], weights: Sequence[Float32]
    ) -> _Trial:
        outputs = [rows @ weight for weight in weights]
        return cls(rows, counts, weights, outputs, [_power(it, counts) for it in outputs])

    def errors(self, rows: Float32, weights: Sequence[Float32]) -> tuple[float, ...]:
        """Of the outputs that other tokens and weights give, as shares of the norm."""
        parts = zip(weights, self.outputs, self.powers, strict=True)
        return tuple(
            float(np.sqrt(_power(rows @ weight - output, self.counts) / power)) if power else 0.0
            for weight, output, power in parts
        )


def _power(values: Float32, counts: npt.NDArray[np.float64]) -> float:
    return float(counts @ np.square(values).sum(axis=1, dtype=np.float64))


def _alphas(group: Group, precision: str) -> tuple[float | None, ...]:
    if group.fold is None:
        return (None,)
    return (None, *(_SMOOTHING if precision == INT8 else _SCALING))


def _candidates(
    alpha: float | None, scale: Float32, seen: LayerInput, trial: _Trial, options: SearchOptions
) -> Iterator[_Candidate]:
    rows = trial.rows / scale
    scaled = [weight * scale[:, None] for weight in trial.weights]
    if options.precision != INT8:
        rounding = Int4Rounding(seen, scale, options.block_size)
        restored = [dequantise_blocks(*rounding.round(it)) for it in scaled]
        yield _Candidate(alpha, None, None, trial.errors(rows, restored))
        return
    restored = [values * scales for values, scales in map(quantise_weight, scaled)]
    for method, threshold in _thresholds(alpha, seen, rows, scale, options.ranges).items():
        errors = trial.errors(round_to_int8(rows, threshold), restored)
        yield _Candidate(alpha, method, threshold, errors)


def _with_feedback(
    plain: _Candidate,
    scale: Float32,
    seen: LayerInput,
    weights: Sequence[Float32],
    options: SearchOptions,
) -> _Candidate:
    """The better of a candidate with and without error feedback, on tokens it did not see."""
    rounding = Int4Rounding(seen, scale, options.block_size)
    apart = rounding.measured
    if not apart.any():
        return plain
    scaled = [weight * scale[:, None] for weight in weights]
    rows = rounding.rows[apart]
    trial = _Trial.of(rows, rounding.counts[apart], scaled)
    errors = {
        method: trial.errors(
            rows,
            [dequantise_blocks(*rounding.round(it, feedback=bool(method))) for it in scaled],
        )
        for method in (None, GPTQ)
    }
    best = min(errors, key=lambda method: sum(errors[method]))
    return _Candidate(plain.alpha, best, None, errors[best])


def round_to_int8(rows: Float32, threshold: float) -> Float32:
    """What is left of activations behind QuantizeLinear and DequantizeLinear."""
    step = np.float32(threshold / LEVELS) if threshold > 0 else np.float32(1)
    rounded: Float32 = np.clip(np.rint(rows / step), -LEVELS - 1, LEVELS) * step
    return rounded


def _thresholds(
    alpha: float | None, seen: LayerInput, rows: Float32, scale: Float32, ranges: str
) -> Mapping[str, float]:
    # Without migration, all that was seen is in the histogram; with it, what was remembered must
    # do. The largest magnitude is exact in both cases.
    histogram = seen.histogram if alpha is None else Histogram.of(rows)
    found = find_thresholds(histogram, float((seen.largest / scale).max(initial=0.0)))
    if ranges != AUTO:
        return {ranges: found[ranges]}
    different: dict[str, float] = {}
    for method, threshold in found.items():
        if all(abs(threshold - it) > _ALIKE * it for it in different.values()):
            different[method] = threshold
    return different
