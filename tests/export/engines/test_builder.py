"""A whole bundle, built by TensorRT-RTX for Ampere."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atp_export.engines import builder
from atp_export.engines.build import BuiltEngine
from atp_export.engines.builder import BuildResult, build_engines
from atp_export.engines.failures import GraphRefusedError
from atp_export.engines.inspection import Network
from atp_export.engines.options import EngineOptions
from atp_export.progress import QuietReporter
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import read_engine_set
from atp_runtime.errors import InputError, MachineError
from atp_runtime.manifest import Stage, read_manifest

if TYPE_CHECKING:
    from atp_export.engines.library import Library

Build = Callable[..., BuildResult]
DEFAULTS = EngineOptions()


class Notes(QuietReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def build(rtx: Library) -> Build:
    """Builds a bundle's engines."""

    def run(
        root: Path, options: EngineOptions = DEFAULTS, reporter: Notes | None = None
    ) -> BuildResult:
        return build_engines(Bundle.open(root), rtx, options, reporter or Notes())

    return run


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is built, for tests of what is built when; the names of the stages asked for."""
    asked: list[str] = []

    def build_nothing(library: object, graph: object, stage: Stage, *_: object) -> BuiltEngine:
        asked.append(stage.name)
        return BuiltEngine(memoryview(b"a plan"), Network(1, {}), None, b"", 0.1)

    monkeypatch.setattr(builder, "build_stage", build_nothing)
    return asked


def made(result: BuildResult) -> set[str]:
    return {stage.stage for stage in result.stages if not stage.reused}


def test_every_stage_has_an_engine_with_size_and_hash(built_bundle: Path, rtx: Library) -> None:
    root = built_bundle / rtx.target.directory
    engines = read_engine_set(root)
    assert engines.target == rtx.target
    assert set(engines.engines) == {"vision", "segment_0", "segment_1", "head"}
    manifest = read_manifest(built_bundle).in_dialect(engines.dialect)
    for stage in manifest.stages:
        assert engines.engines[stage.name].sources == {
            name: manifest.files[name].sha256 for name in (stage.graph, *stage.data)
        }
    for engine in engines.engines.values():
        content = (root / engine.file).read_bytes()
        assert engine.record.bytes == len(content)
        assert engine.record.sha256 == hashlib.sha256(content).hexdigest()
    names = [profile.name for profile in engines.engines["segment_0"].profiles]
    assert names == ["prefill", "decode"]


def test_a_second_run_builds_nothing(own_built: Path, build: Build) -> None:
    notes = Notes()
    result = build(own_built, reporter=notes)
    assert made(result) == set()
    assert notes.lines == []
    assert [stage.stage for stage in result.stages] == ["vision", "segment_0", "segment_1", "head"]


def test_other_weights_of_one_segment_build_that_one(
    own_built: Path, build: Build, change_weights: Callable[[Path, str], Bundle]
) -> None:
    change_weights(own_built, "segment_1")
    assert made(build(own_built)) == {"segment_1"}
    assert made(build(own_built)) == set()


def test_what_segments_are_tuned_for_builds_those_it_concerns(
    own_built: Path, build: Build
) -> None:
    notes = Notes()
    result = build(own_built, EngineOptions(kept=(2,)), notes)
    assert made(result) == {"segment_1"}
    assert len(notes.lines) == 1
    assert notes.lines[0].startswith("segment_1: built in")


def test_other_limits_build_everything(own_built: Path, build: Build, pretend: list[str]) -> None:
    limits = EngineOptions(optimisation_level=0), EngineOptions(workspace_bytes=1 << 30)
    for number, options in enumerate(limits, start=1):
        result = build(own_built, options)
        assert made(result) == {"vision", "segment_0", "segment_1", "head"}
        assert len(pretend) == 4 * number


def test_another_version_of_the_library_builds_beside_the_old_engines(
    own_built: Path, rtx: Library
) -> None:
    newer = replace(rtx, target=replace(rtx.target, version="99.0"))
    bundle = Bundle.open(own_built)
    head = replace(bundle, manifest=replace(bundle.manifest, stages=bundle.manifest.stages[-1:]))
    result = build_engines(head, newer, EngineOptions(), Notes())
    assert made(result) == {"head"}
    assert result.directory.name == "rtx99.0-sm86"
    assert len(read_engine_set(own_built / rtx.target.directory).engines) == 4


@pytest.mark.usefixtures("pretend")
def test_an_interrupted_build_keeps_what_is_finished_and_goes_on_behind_it(
    own_bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch, rtx: Library
) -> None:
    real = builder.build_stage

    def interrupted(*arguments: Any) -> BuiltEngine:
        if arguments[2].name == "segment_1":
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "build_stage", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(own_bundle)
    root = own_bundle / rtx.target.directory
    assert set(read_engine_set(root).engines) == {"vision", "segment_0"}
    names = {path.name for path in root.iterdir()}
    assert names == {"engines.json", "vision.plan", "segment_0.plan"}
    assert made(build(own_bundle)) == {"segment_1", "head"}


def test_a_refused_graph_keeps_the_engines_before_it(
    own_bundle: Path, rtx: Library, build: Build
) -> None:
    bundle = Bundle.open(own_bundle)
    stages = tuple(
        # The vision graph has no such inputs.
        replace(stage, graph="onnx/embed_tokens.npy") if stage.name == "segment_0" else stage
        for stage in bundle.manifest.stages
    )
    damaged = replace(bundle, manifest=replace(bundle.manifest, stages=stages))
    with pytest.raises(GraphRefusedError, match="segment_0"):
        build_engines(damaged, rtx, EngineOptions(), Notes())
    assert set(read_engine_set(own_bundle / rtx.target.directory).engines) == {"vision"}


def test_the_bundle_itself_is_left_as_it_was(built_bundle: Path, small_bundle: Path) -> None:
    for name in ("manifest.json", "onnx/segment_0.onnx", "onnx/segment_0.data"):
        assert (built_bundle / name).read_bytes() == (small_bundle / name).read_bytes()


def test_a_disk_without_room_is_refused_before_anything_is_built(
    own_bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "plan_bytes", lambda weights: 10**15)
    with pytest.raises(MachineError, match="MB free"):
        build(own_bundle)
    assert not (own_bundle / "engines").exists() or not list((own_bundle / "engines").iterdir())


def test_too_little_memory_is_told_before_a_stage_is_built(
    own_built: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "available_memory", lambda: 10**6)
    notes = Notes()
    build(own_built, EngineOptions(kept=(3,)), notes)
    assert "--max-segment-bytes" in notes.lines[0]
    assert notes.lines[0].startswith("segment_1: building may take")


def test_a_dialect_the_bundle_lacks_is_refused(own_bundle: Path, build: Build) -> None:
    with pytest.raises(InputError, match="native"):
        build(own_bundle, EngineOptions(dialect="native"))


@pytest.mark.usefixtures("pretend")
def test_an_engine_is_out_of_memory_before_the_next_one_is_built(
    own_bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builder.build_stage
    alive: list[weakref.ref[BuiltEngine]] = []

    def watched(*arguments: Any) -> BuiltEngine:
        assert all(reference() is None for reference in alive)
        built = real(*arguments)
        alive.append(weakref.ref(built))
        return built

    monkeypatch.setattr(builder, "build_stage", watched)
    build(own_bundle)
    assert len(alive) == 4
