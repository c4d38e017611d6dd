from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from atp_export.engines.options import EngineOptions
from atp_export.engines.trtexec import trtexec_commands
from atp_runtime.manifest import Manifest

Make = Callable[..., Manifest]
BUNDLE = Path("/my models/it's a bundle")


@pytest.fixture
def words(make_manifest: Make) -> Callable[..., list[str]]:
    """The words of a stage's command, as a shell reads them."""

    def of_stage(stage: str, options: EngineOptions) -> list[str]:
        manifest = make_manifest(points=3, longest=4096, visual=576, text=64)
        first, *commands = trtexec_commands(BUNDLE, manifest, options)
        assert shlex.split(first) == ["mkdir", "-p", f"{BUNDLE}/engines/trtexec"]
        names = [it.name for it in manifest.stages]
        return shlex.split(commands[names.index(stage)])

    return of_stage


def test_there_is_a_command_per_stage(make_manifest: Make) -> None:
    manifest = make_manifest()
    commands = trtexec_commands(BUNDLE, manifest, EngineOptions())
    assert len(commands) == 1 + len(manifest.stages)
    assert all("\n" not in command for command in commands)


def test_files_are_quoted_for_the_shell(words: Callable[..., list[str]]) -> None:
    found = words("head", EngineOptions())
    assert found[:2] == ["trtexec", f"--onnx={BUNDLE}/onnx/head.onnx"]
    assert f"--saveEngine={BUNDLE}/engines/trtexec/head.plan" in found
    assert f"--timingCacheFile={BUNDLE}/engines/trtexec/timing.cache" in found


def test_segments_have_both_profiles_each_followed_by_its_shapes(
    words: Callable[..., list[str]],
) -> None:
    found = words("segment_3", EngineOptions(max_tokens=1000, kept=(300, 150, 60)))
    start = found.index("--profile=0")
    kept = ("keep_indices", "position_ids")
    caches = ("past_key_values.3.key", "past_key_values.3.value")

    def spec(tokens: int, stay: int, past: int) -> str:
        indices = f"{kept[0]}:{stay},{kept[1]}:1x{stay}"
        cached = ",".join(f"{name}:1x{past}x2x4" for name in caches)
        return f"hidden_states:1x{tokens}x8,{indices},{cached}"

    assert found[start : start + 8] == [
        "--profile=0",
        f"--minShapes={spec(1, 1, 0)}",
        f"--optShapes={spec(214, 124, 0)}",
        f"--maxShapes={spec(1000, 1000, 1000)}",
        "--profile=1",
        f"--minShapes={spec(1, 1, 0)}",
        f"--optShapes={spec(1, 1, 124)}",
        f"--maxShapes={spec(1, 1, 1000)}",
    ]


def test_a_single_profile_needs_no_index(words: Callable[..., list[str]]) -> None:
    found = words("vision", EngineOptions())
    assert not any(word.startswith("--profile") for word in found)
    assert "--optShapes=pixel_values:1x3x4x4" in found
    assert "--maxShapes=pixel_values:7x3x4x4" in found


def test_engines_are_built_as_this_program_does_and_not_run(
    words: Callable[..., list[str]],
) -> None:
    found = words("head", EngineOptions(workspace_bytes=512 << 20, optimisation_level=4))
    for word in ("--stronglyTyped", "--noTF32", "--skipInference", "--profilingVerbosity=detailed"):
        assert word in found
    assert "--memPoolSize=workspace:512" in found  # MiB
    assert "--builderOptimizationLevel=4" in found


def test_what_is_left_to_tensorrt_is_not_named(words: Callable[..., list[str]]) -> None:
    found = words("head", EngineOptions())
    assert not any(word.startswith(("--memPoolSize", "--builderOpt")) for word in found)
