"""The arithmetic of adaptive token pruning (ATP-LLaVA, arXiv 2412.00447), for one image.

Which criteria there are, how they are combined and where the modules stand is the paper's.
It leaves open how scores are scaled, which grids are sampled and what the thresholds are
predicted from; what is marked "reconstructed" here is this project's answer, the same as
in `atp_models.atp`, where the modules are trained. All of it is float64: n is a few hundred
and the difference between two scores may be small.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from atp_runtime.errors import InputError

Vector = npt.NDArray[np.float64]

QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90)
NORMALISATIONS = ("min_max", "none")
REDUNDANCIES = ("both", "self", "cross", "none")
FEATURES = 2 * (2 + len(QUANTILES)) + 2
HIDDEN = 32
SHAPES: Mapping[str, tuple[int, ...]] = {
    "shared.weight": (HIDDEN, FEATURES),
    "shared.bias": (HIDDEN,),
    "redundancy.weight": (1, HIDDEN),
    "redundancy.bias": (1,),
    "spatial.weight": (1, HIDDEN),
    "spatial.bias": (1,),
}
_NAME = re.compile(r"(points\.\d+\.)(" + "|".join(map(re.escape, SHAPES)) + ")")
_FIX = "export the bundle again from a checkpoint whose ATP modules are complete."


@dataclass(frozen=True)
class AtpWeights:
    """One point's module.

    Attributes:
        shared: Weight [32, 16] and bias [32] of the layer both heads read.
        heads: Weights [2, 32] and biases [2] of theta_r and theta_s, in that order.
    """

    shared: tuple[Vector, Vector]
    heads: tuple[Vector, Vector]

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, npt.NDArray[np.floating]], prefix: str
    ) -> AtpWeights:
        """Takes the tensors whose names begin with `prefix`, such as "points.0.".

        Raises:
            InputError: One is missing, has another shape or is not finite.
        """
        part = {name: _tensor(tensors, prefix + name, shape) for name, shape in SHAPES.items()}
        weights = np.concatenate([part["redundancy.weight"], part["spatial.weight"]])
        biases = np.concatenate([part["redundancy.bias"], part["spatial.bias"]])
        return cls((part["shared.weight"], part["shared.bias"]), (weights, biases))


def _tensor(
    tensors: Mapping[str, npt.NDArray[np.floating]], name: str, shape: tuple[int, ...]
) -> Vector:
    if name not in tensors:
        raise InputError(f"ATP tensor {name!r} is missing", why="the rule needs it.", fix=_FIX)
    value = tensors[name]
    if value.shape != shape:
        why = f"it must be {list(shape)}."
        raise InputError(f"ATP tensor {name!r} is {list(value.shape)}", why=why, fix=_FIX)
    if not np.isfinite(value).all():
        why = "no threshold can be computed from it."
        raise InputError(f"ATP tensor {name!r} has NaN or infinite values", why=why, fix=_FIX)
    return value.astype(np.float64)


def load_pruning_weights(path: Path) -> Mapping[str, AtpWeights]:
    """Reads `atp_modules.safetensors` of a bundle.

    Returns:
        Each module by the prefix of its tensors, such as "points.0.".

    Raises:
        InputError: The file is missing or damaged, or a tensor is missing, unknown, of
            another shape or not finite; the message names it.
    """
    try:
        tensors = load_file(path)
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{path}: {error}", why="the ATP modules cannot be read from it.", fix=_FIX
        ) from error
    names = {name: _NAME.fullmatch(name) for name in tensors}
    unknown = sorted(name for name, match in names.items() if match is None)
    if unknown:
        why = "an ATP module is made of points.<number>." + ", ".join(SHAPES) + "."
        raise InputError(f"{path}: unknown tensor {unknown[0]!r}", why=why, fix=_FIX)
    prefixes = sorted({match[1] for match in names.values() if match})
    return {prefix: AtpWeights.from_tensors(tensors, prefix) for prefix in prefixes}


def normalise(scores: npt.NDArray[np.floating], how: str = "min_max") -> Vector:
    """Scales scores [n] to 0..1 by their extremes; 0 everywhere when they are all equal.

    Reconstructed: a softmax mean is about 1/n and could never meet a threshold near 0.5.
    "none" leaves them as they are, the equations' literal reading.
    """
    wide = scores.astype(np.float64)
    if how == "none":
        return wide
    low = wide.min()
    span = wide.max() - low
    return (wide - low) / span if span > 0 else np.zeros_like(wide)


def redundancy_scores(
    s_self: Vector, s_cross: Vector, *, has_text: bool, how: str = "both"
) -> Vector:
    """S_red [n], from both scores or, as in the paper's ablations, from less.

    Without text after the image, S_self stands in for what needs S_cross.

    Args:
        s_self: [n], normalised.
        s_cross: [n], normalised.
        has_text: Whether text follows the image.
        how: "both", (S_self + S_cross) / 2; "self" or "cross" alone; or "none", which turns
            the criterion off: -inf, which is above no threshold.
    """
    if how == "none":
        return np.full_like(s_self, -np.inf)
    if how == "self" or not has_text:
        return s_self
    return s_cross if how == "cross" else (s_self + s_cross) / 2


def spatial_scores(
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    *,
    lambda_sample: float,
    strides: Sequence[int],
) -> Vector:
    """S_sp = 1 - lambda_sample * R [n] on a uniform sampling grid of rate R, 0 elsewhere.

    Reconstructed: the grids are nested, one per stride s with R = 1 / s^2, and a token takes
    the sparsest it lies on, so that theta_s chooses a density. Features without a place
    (row -1) lie on none. Without strides the criterion is off: -inf, above no threshold.

    Args:
        row: int64 [n].
        column: int64 [n].
        lambda_sample: How fast a denser grid loses score.
        strides: Rising.
    """
    spatial = np.full(len(row), 0.0 if strides else -np.inf)
    placed = row >= 0
    for stride in strides:
        on_grid = placed & (row % stride == 0) & (column % stride == 0)
        spatial[on_grid] = 1 - lambda_sample / stride**2
    return spatial


def score_features(s_self: Vector, s_cross: Vector, attention: float) -> Vector:
    """What the thresholds are predicted from, x [16]. Reconstructed.

    Statistics of fixed width, so that a module does not depend on how many tokens are left:
    mean, standard deviation and quantiles of S_self, the same of S_cross, their correlation
    (0 if either is constant), and the log of the attention that text pays to the image.

    Args:
        s_self: [n], normalised.
        s_cross: [n], normalised.
        attention: Sum of the raw cross scores.
    """
    self_statistics, self_offsets = _statistics(s_self)
    cross_statistics, cross_offsets = _statistics(s_cross)
    correlation = 0.0
    if self_offsets.any() and cross_offsets.any():
        scale = math.sqrt(self_offsets.dot(self_offsets) * cross_offsets.dot(cross_offsets))
        correlation = float(self_offsets.dot(cross_offsets)) / scale
    total = math.log(max(attention, 0.0) + 1e-6)
    return np.array([*self_statistics, *cross_statistics, correlation, total])


def _statistics(scores: Vector) -> tuple[list[float], Vector]:
    """Mean, deviation and quantiles of scores [n], and the scores [n] less their mean."""
    ordered = np.sort(scores)
    last = len(ordered) - 1
    constant = ordered[0] == ordered[last]
    mean = float(ordered[0]) if constant else float(scores.mean())
    offsets = scores - mean
    deviation = math.sqrt(offsets.dot(offsets) / len(scores))
    quantiles = []
    for quantile in QUANTILES:
        below = math.floor(quantile * last)
        low, high = float(ordered[below]), float(ordered[min(below + 1, last)])
        quantiles.append(low + (high - low) * (quantile * last - below))
    return [mean, deviation, *quantiles], offsets


def thresholds(features: Vector, weights: AtpWeights) -> tuple[float, float]:
    """theta_r, theta_s = sigmoid(head_r(z)), sigmoid(head_s(z)) with z = relu(shared(x))."""
    weight, bias = weights.shared
    hidden = np.maximum(weight @ features + bias, 0.0)
    weight, bias = weights.heads
    redundancy, spatial = weight @ hidden + bias
    return _sigmoid(float(redundancy)), _sigmoid(float(spatial))


def _sigmoid(value: float) -> float:
    shrunk = math.exp(-abs(value))
    return 1 / (1 + shrunk) if value >= 0 else shrunk / (1 + shrunk)


def margins(redundancy: Vector, spatial: Vector, *, theta_r: float, theta_s: float) -> Vector:
    """max(S_red - theta_r, S_sp - theta_s) [n]: above 0 where a token is kept.

    The paper's inference rule, keep iff S_red > theta_r or S_sp > theta_s.
    """
    return np.maximum(redundancy - theta_r, spatial - theta_s)
