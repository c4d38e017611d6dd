"""What engines are tried with: random inputs that mean what they mean in a conversation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_export.engines.profiles import tensor_shape
from atp_runtime.engine_set import PREFILL, EngineProfile
from atp_runtime.manifest import AxisRange, Stage, TensorSpec
from atp_runtime.tensor_names import MERGE_WEIGHTS, PLACES, ROWS, WINDOW

Array = npt.NDArray[Any]

_SEED = 20241
# A chunk long enough to fill tiles of a matrix product, short enough for a slow CPU.
_TOKENS, _KEPT, _ROWS, _PAST = 64, 48, 8, 40
# A decode step's past has room behind what is filled, which the graph must hide.
_PADDING = 8


@dataclass(frozen=True)
class Moment:
    """One call of a stage.

    Attributes:
        name: "prefill", "turn" (a prefill behind what is cached) or "decode".
        lengths: Of the stage's named axes.
    """

    name: str
    lengths: Mapping[str, int]


def moments(profiles: tuple[EngineProfile, ...]) -> tuple[Moment, ...]:
    """Calls that use every profile, and prefill with an empty cache and with a filled one."""
    found = []
    for profile in profiles:
        lengths = _lengths(profile.axes)
        if profile.name == PREFILL and "past" in lengths:
            empty = profile.axes["past"].minimum
            found.append(Moment(profile.name, {**lengths, "past": empty}))
            if lengths["past"] > empty:
                found.append(Moment("turn", lengths))
        else:
            found.append(Moment(profile.name, lengths))
    return tuple(found)


def sample_inputs(stage: Stage, lengths: Mapping[str, int]) -> dict[str, Array]:
    """The same random inputs on every call, by name.

    Hidden states, caches and pixels are normal; a part of the tokens is kept, in order, and the
    last rows are the text whose attention a scorer averages. Where
    tokens can be merged, the first that are kept are merged ones.
    """
    generator = np.random.default_rng(_SEED)
    inputs = {spec.name: _sample(spec, lengths, generator) for spec in stage.inputs}
    for spec in stage.inputs:
        if spec.name in ROWS + WINDOW:
            inputs[spec.name] = _row_table(spec, lengths)
        elif spec.name == PLACES:
            inputs[spec.name] = _places(lengths)
        elif spec.name == MERGE_WEIGHTS:
            shape = tensor_shape(spec, lengths)
            inputs[spec.name] = np.full(shape, 1 / lengths["tokens"], np.float32)
    return inputs


def _lengths(axes: Mapping[str, AxisRange]) -> dict[str, int]:
    wanted = {"tokens": _TOKENS, "kept": _KEPT, "rows": _ROWS, "past": _PAST}
    lengths = {
        name: min(max(axis.minimum, wanted.get(name, axis.typical)), axis.maximum)
        for name, axis in axes.items()
    }
    for inner, outer in (("kept", "tokens"), ("rows", "kept")):
        if inner in lengths:
            lengths[inner] = min(lengths[inner], lengths[outer])
    if "others" in lengths:
        lengths["others"] = min(_ROWS, lengths["kept"])
    if "visual" in lengths:
        lengths["visual"] = lengths["kept"] - lengths["others"]
        lengths["blocks"] = min(lengths["visual"], axes["blocks"].maximum)
    return lengths


def _sample(spec: TensorSpec, lengths: Mapping[str, int], generator: np.random.Generator) -> Array:
    shape = tensor_shape(spec, lengths)
    if spec.name in ("keep_indices", "position_ids"):
        # Both from one seed: positions are those of the tokens that are kept.
        chosen = np.random.default_rng(_SEED).permutation(lengths["tokens"])[: lengths["kept"]]
        index = np.sort(chosen).astype(np.int64)
        if spec.name == "keep_indices" and lengths["kept"] > 1:
            merged = lengths.get("merged", 0)
            index[:merged] = lengths["tokens"] + np.arange(merged)
        return index if spec.name == "keep_indices" else (_filled(lengths) + index)[None]
    if spec.name == "past_length":
        return np.array([_filled(lengths)])
    if spec.name == "text_rows":
        return np.arange(lengths["kept"] - lengths["rows"], lengths["kept"])
    if spec.name == "text_weights":
        return np.full(shape, 1 / lengths["rows"], np.float32)
    if spec.name == "visual_weights":
        visual = max(1, lengths["kept"] - lengths["rows"])
        return np.where(np.arange(lengths["kept"]) < visual, 1 / visual, 0).astype(np.float32)
    return generator.normal(size=shape).astype(spec.dtype)


def _places(lengths: Mapping[str, int]) -> Array:
    """Of a sequence that begins with the patches of an image, four in a row."""
    token = np.arange(lengths["kept"])
    places = np.stack((np.zeros_like(token), token // 4, token % 4), axis=1)
    return np.where(token[:, np.newaxis] < lengths["kept"] - _ROWS, places, -1)


def _row_table(spec: TensorSpec, lengths: Mapping[str, int]) -> Array:
    """Of a sequence that begins with its visual tokens, packed into the first blocks."""
    name, shape, others = spec.name, tensor_shape(spec, lengths), lengths["others"]
    visual = lengths["kept"] - others
    if name == "other_rows":
        return visual + np.arange(others)
    if name == "row_slots":
        return np.roll(np.arange(lengths["kept"]), visual)
    if name == "window_cells":
        return np.arange(visual)
    places = np.arange(math.prod(shape)).reshape(shape)
    return np.where(places < visual, places, -1)


def _filled(lengths: Mapping[str, int]) -> int:
    """Positions of the past that hold something."""
    padding = _PADDING if lengths["tokens"] == 1 else 0
    return max(0, lengths["past"] - padding)
