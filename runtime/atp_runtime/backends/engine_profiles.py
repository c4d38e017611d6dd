"""Which optimisation profile of an engine a run uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atp_runtime.engine_set import DECODE, EngineProfile
from atp_runtime.errors import InputError
from atp_runtime.manifest import Stage


def axis_places(stage: Stage) -> dict[str, tuple[str, int]]:
    """For each named axis of a stage an input that has it, and its place in the input's shape."""
    places: dict[str, tuple[str, int]] = {}
    for spec in stage.inputs:
        for place, length in enumerate(spec.shape):
            if isinstance(length, str):
                places.setdefault(length, (spec.name, place))
    return places


def check_profiles(
    stage: Stage, profiles: Sequence[EngineProfile], in_engine: int, axes: Sequence[str]
) -> None:
    """Makes sure that the profiles say something about every axis of the stage.

    Args:
        stage: What the engine runs.
        profiles: What is known of them.
        in_engine: How many the engine has.
        axes: The stage's.

    Raises:
        InputError: A profile or an axis is missing.
    """
    if len(profiles) == in_engine > 0 and all(set(axes) <= set(it.axes) for it in profiles):
        return
    raise InputError(
        f"stage {stage.name}: its engine's profiles are not those that engines.json lists",
        why="a profile is chosen by the lengths of the stage's axes.",
        fix="build the engines again: atp-export engines BUNDLE.",
    )


def longest_lengths(profiles: Sequence[EngineProfile], axes: Sequence[str]) -> dict[str, int]:
    """The greatest length of each axis that some profile admits."""
    return {axis: max(it.axes[axis].maximum for it in profiles) for axis in axes}


def choose_profile(
    stage: Stage, profiles: Sequence[EngineProfile], lengths: Mapping[str, int]
) -> int:
    """The index of the decode profile if it admits the lengths, else of one that does.

    Args:
        stage: What is to be run.
        profiles: In the order of the engine.
        lengths: Of every axis of the stage.

    Raises:
        InputError: None admits them; the message names the first axis that is too long for all.
    """
    admitting = [number for number, it in enumerate(profiles) if it.admits(lengths)]
    if admitting:
        return min(admitting, key=lambda number: profiles[number].name != DECODE)
    longest = longest_lengths(profiles, list(lengths))
    limits = [axis for axis, length in lengths.items() if length > longest[axis]]
    if not limits:
        shown = ", ".join(f"{axis} {length}" for axis, length in lengths.items())
        raise InputError(
            f"stage {stage.name}: no profile of its engine admits {shown}",
            why="not all of these lengths are in the ranges of the same profile.",
            fix="build the engines again: atp-export engines BUNDLE.",
        )
    axis = limits[0]
    raise InputError(
        f"stage {stage.name}: the axis {axis!r} has length {lengths[axis]}",
        why=f"its engine was built for {longest[axis]} at most.",
        fix="use a shorter prompt, fewer images or a new conversation, or build engines for longer "
        f"sequences: atp-export engines BUNDLE --max-tokens {max(lengths.values())} or more.",
    )
