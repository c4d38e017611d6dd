"""Optimisation profiles: which lengths an engine takes, and which it is tuned for.

Segments have two, which share the weights: "prefill" takes every length, "decode" one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atp_export.engines.options import EngineOptions
from atp_runtime.engine_set import DECODE, PREFILL, EngineProfile
from atp_runtime.errors import InputError
from atp_runtime.manifest import AxisRange, Manifest, Stage, TensorSpec
from atp_runtime.tensor_names import ROW_AXES
from atp_runtime.token_flow import tokens_entering

Shape = tuple[int, ...]
_ONE = AxisRange(1, 1, 1)
_NONE = AxisRange(0, 0, 0)


@dataclass(frozen=True)
class InputShapes:
    """Of one input in one profile."""

    minimum: Shape
    opt: Shape
    maximum: Shape


def stage_profiles(
    manifest: Manifest, stage: Stage, options: EngineOptions
) -> tuple[EngineProfile, ...]:
    """The profiles of a stage, in the order of their indices in the engine.

    Args:
        manifest: The bundle's.
        stage: One of it.
        options: `max_tokens` lowers every maximum, `kept` moves what later segments are tuned
            for.

    Raises:
        InputError: `max_tokens` is beyond what the bundle was exported for, or `kept` does not
            fit the bundle's pruning points.
    """
    limit = _limit(manifest, options)
    if stage.kind == "segment":
        return _segment_profiles(manifest, stage, options, limit)
    if stage.kind == "vision":
        images = manifest.axes["images"]
        most = max(1, limit // max(1, manifest.vision.most_tokens))
        return (_of_stage(PREFILL, stage, {"images": _up_to(images, most, images.typical)}),)
    if stage.kind == "projector":
        return (_of_stage(PREFILL, stage, {"selected": manifest.axes["selected"]}),)
    # The runtime passes the last position alone.
    return (_of_stage(PREFILL, stage, {"tokens": _up_to(manifest.axes["tokens"], limit, 1)}),)


def profile_shapes(stage: Stage, profile: EngineProfile) -> dict[str, InputShapes]:
    """Minimum, optimum and maximum of every input that has a named axis."""
    axes = profile.axes.items()
    return {
        tensor.name: InputShapes(
            tensor_shape(tensor, {name: axis.minimum for name, axis in axes}),
            tensor_shape(tensor, {name: axis.typical for name, axis in axes}),
            tensor_shape(tensor, {name: axis.maximum for name, axis in axes}),
        )
        for tensor in stage.inputs
        if any(isinstance(size, str) for size in tensor.shape)
    }


def tensor_shape(tensor: TensorSpec, lengths: Mapping[str, int]) -> Shape:
    """The tensor's shape where its named axes have these lengths."""
    return tuple(lengths[size] if isinstance(size, str) else size for size in tensor.shape)


def _segment_profiles(
    manifest: Manifest, stage: Stage, options: EngineOptions, limit: int
) -> tuple[EngineProfile, ...]:
    axes = manifest.axes
    entering, kept = _expected_lengths(manifest, options)[stage.name]
    past = axes["past"]
    prefill = {
        "tokens": _up_to(axes["tokens"], limit, entering),
        "kept": _up_to(axes["kept"], limit, kept),
        "past": _up_to(past, limit, past.minimum),
        "rows": _up_to(axes["rows"], limit, axes["rows"].typical),
    }
    if "merged" in axes:
        prefill["merged"] = _up_to(axes["merged"], limit, axes["merged"].typical)
    for axis, typical in _row_lengths(manifest, kept).items():
        most = axes[axis].maximum if axis == "blocks" else limit
        prefill[axis] = _up_to(axes[axis], most, typical)
    # What is cached when the first token is decoded; answers are short beside an image.
    decode = {"tokens": _ONE, "kept": _ONE, "past": _up_to(past, limit, kept), "rows": _ONE}
    decode |= {"merged": _ONE, "others": _ONE, "visual": _NONE, "blocks": _NONE}
    return _of_stage(PREFILL, stage, prefill), _of_stage(DECODE, stage, decode)


def _row_lengths(manifest: Manifest, kept: int) -> dict[str, int]:
    """Where visual tokens are spared work, how long the axes of their rows are in a prefill."""
    typical = {name: manifest.axes[name].typical for name in ROW_AXES if name in manifest.axes}
    return typical | ({"visual": min(kept, typical["visual"])} if "visual" in typical else {})


def _expected_lengths(manifest: Manifest, options: EngineOptions) -> dict[str, tuple[int, int]]:
    """Tokens that enter each segment and tokens that stay after its gather, in a prefill."""
    typical = manifest.axes["tokens"].typical
    text = max(1, typical - manifest.vision.most_tokens)
    visual = iter(_checked_kept(manifest, options))
    kept = tokens_entering(
        manifest.segments, typical, lambda _point, alive: min(alive, text + next(visual))
    )
    lengths, entering = {}, typical
    for segment, count in zip(manifest.segments, kept, strict=True):
        lengths[segment.name] = entering, count
        # What skips a routed layer leaves it, too.
        entering = entering if segment.routed else count
    return lengths


def _checked_kept(manifest: Manifest, options: EngineOptions) -> tuple[int, ...]:
    pruning = [segment.pruning for segment in manifest.segments if segment.pruning]
    points = len(pruning)
    most = manifest.vision.most_tokens
    if options.kept is None:
        return (manifest.axes["tokens"].typical,) * points
    shown = f"--kept {','.join(map(str, options.kept))}"
    if len(options.kept) != points:
        raise InputError(
            shown,
            why=f"the bundle has {points} pruning points.",
            fix="give one number for each, or leave the option away.",
        )
    gone = [it for point, it in zip(pruning, options.kept, strict=True) if not point.returns]
    if max(options.kept, default=0) > most or gone != sorted(gone, reverse=True):
        raise InputError(
            shown,
            why=f"an image has {most} visual tokens, and those that were dropped do not come back.",
            fix=f"give numbers that do not rise, the first up to {most}.",
        )
    return options.kept


def _limit(manifest: Manifest, options: EngineOptions) -> int:
    longest = manifest.axes["tokens"].maximum
    if options.max_tokens is None:
        return longest
    if options.max_tokens > longest:
        raise InputError(
            f"--max-tokens {options.max_tokens}",
            why=f"the bundle was exported for up to {longest}.",
            fix=f"choose a number up to {longest}, or export again with a larger --max-tokens.",
        )
    return options.max_tokens


def _up_to(axis: AxisRange, limit: int, typical: int) -> AxisRange:
    maximum = max(axis.minimum, min(axis.maximum, limit))
    return AxisRange(axis.minimum, min(max(axis.minimum, typical), maximum), maximum)


def _of_stage(name: str, stage: Stage, axes: Mapping[str, AxisRange]) -> EngineProfile:
    """The profile without the axes that the stage does not have."""
    named = {size for tensor in stage.inputs for size in tensor.shape}
    return EngineProfile(name, {axis: length for axis, length in axes.items() if axis in named})
