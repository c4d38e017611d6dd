"""The `trtexec` commands that build the same engines, for trying things by hand.

The runtime reads engines through `engines.json`, which `trtexec` does not write, so what these
commands build is for measuring and for bug reports. Needs no TensorRT.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import Shape, profile_shapes, stage_profiles
from atp_runtime.engine_set import ENGINES_DIRECTORY, TIMING_CACHE_NAME, EngineProfile
from atp_runtime.manifest import Manifest, Stage


def trtexec_commands(bundle: Path, manifest: Manifest, options: EngineOptions) -> tuple[str, ...]:
    """One shell command per stage, after one that makes the directory for what they write.

    Args:
        bundle: The bundle's directory.
        manifest: In the dialect to build from.
        options: How to build.

    Raises:
        InputError: The options do not fit the bundle.
    """
    directory = bundle / ENGINES_DIRECTORY / "trtexec"
    words = [_command(bundle, directory, manifest, stage, options) for stage in manifest.stages]
    return (shlex.join(["mkdir", "-p", str(directory)]), *map(shlex.join, words))


def _command(
    bundle: Path, directory: Path, manifest: Manifest, stage: Stage, options: EngineOptions
) -> list[str]:
    words = [
        "trtexec",
        f"--onnx={bundle / stage.graph}",
        "--stronglyTyped",
        "--noTF32",
        "--profilingVerbosity=detailed",
        *_profiles(stage, stage_profiles(manifest, stage, options)),
        f"--timingCacheFile={directory / TIMING_CACHE_NAME}",
    ]
    if options.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_bytes >> 20}")  # MiB
    if options.optimisation_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimisation_level}")
    # Without the last one it would run the engine on shapes of its own choice.
    return [*words, f"--saveEngine={directory / stage.name}.plan", "--skipInference"]


def _profiles(stage: Stage, profiles: tuple[EngineProfile, ...]) -> Iterable[str]:
    for index, profile in enumerate(profiles):
        shapes = profile_shapes(stage, profile)
        # The three options have to follow their profile's index directly.
        if len(profiles) > 1:
            yield f"--profile={index}"
        yield _shapes("--minShapes", {name: shape.minimum for name, shape in shapes.items()})
        yield _shapes("--optShapes", {name: shape.opt for name, shape in shapes.items()})
        yield _shapes("--maxShapes", {name: shape.maximum for name, shape in shapes.items()})


def _shapes(option: str, shapes: dict[str, Shape]) -> str:
    texts = (f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return f"{option}={','.join(texts)}"
