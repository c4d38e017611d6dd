import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.backends.host_engines import TARGET, record, write_engines

from atp_runtime import recorded_files
from atp_runtime.backends.engine_files import EngineFiles, checked_plan, find_engines
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import Engine, EngineSet, Target
from atp_runtime.errors import CheckFailedError, InputError, MachineError
from atp_runtime.manifest import Manifest, read_manifest

SEGMENT = "segment_1"


def plan_of(root: Path) -> Path:
    return root / TARGET.directory / f"{SEGMENT}.plan"


def check(root: Path) -> Engine:
    bundle = Bundle.open(root)
    files = find_engines(bundle, TARGET)
    return checked_plan(bundle, files, bundle.manifest.stage(SEGMENT))[0]


def changed(**fields: object) -> Callable[[EngineSet], EngineSet]:
    """Changes the engine of one segment."""

    def change(engines: EngineSet) -> EngineSet:
        engine = replace(engines.engines[SEGMENT], **fields)
        return replace(engines, engines={**engines.engines, SEGMENT: engine})

    return change


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_engines_of_this_machine_are_found(built: Path) -> None:
    bundle = Bundle.open(built)
    files = find_engines(bundle, TARGET)
    assert files == EngineFiles(TARGET.directory, write_engines(built))
    engine, path = checked_plan(bundle, files, bundle.manifest.stage(SEGMENT))
    assert engine == files.engines.engines[SEGMENT]
    assert path == plan_of(built)


def test_bundle_without_engines_is_refused_with_the_command_that_builds_them(
    own_bundle: Path,
) -> None:
    with pytest.raises(InputError, match=r"no engines for TensorRT 10\.3\.0 on Host") as raised:
        find_engines(Bundle.open(own_bundle), TARGET)
    assert "there are engines" not in raised.value.why
    assert "on this machine: atp-export engines" in raised.value.fix


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"version": "10.16.2"}, "TensorRT 10.16.2 on Host (SM 8.7)"),
        ({"sm": 110}, "TensorRT 10.3.0 on Host (SM 11.0)"),
        ({"gpu": "Thor"}, "TensorRT 10.3.0 on Thor (SM 8.7)"),
        ({"library": "tensorrt_rtx"}, "TensorRT for RTX 10.3.0 on Host (SM 8.7)"),
    ],
)
def test_engines_of_another_machine_are_refused_and_named(
    own_bundle: Path, other: dict[str, object], said: str
) -> None:
    write_engines(own_bundle, change=lambda it: replace(it, target=replace(TARGET, **other)))
    with pytest.raises(InputError, match=r"no engines for TensorRT 10\.3\.0") as raised:
        find_engines(Bundle.open(own_bundle), TARGET)
    assert f"there are engines for {said}." in raised.value.why


def test_engines_that_cannot_be_read_are_named_when_others_are_wanted(built: Path) -> None:
    (built / TARGET.directory / "engines.json").write_text("{}")
    with pytest.raises(InputError, match="no engines") as raised:
        find_engines(Bundle.open(built), replace(TARGET, sm=72))
    assert "trt10.3.0-sm87 (unreadable)" in raised.value.why


def test_engines_are_refused_when_their_list_is_malformed(built: Path) -> None:
    (built / TARGET.directory / "engines.json").write_text("{}")
    with pytest.raises(InputError, match=r"engines\.json: not version 1"):
        find_engines(Bundle.open(built), TARGET)


def test_stage_is_refused_when_its_engine_was_not_built(own_bundle: Path) -> None:
    def without(engines: EngineSet) -> EngineSet:
        rest = {name: it for name, it in engines.engines.items() if name != SEGMENT}
        return replace(engines, engines=rest)

    write_engines(own_bundle, change=without)
    with pytest.raises(InputError, match=f"no engine for stage {SEGMENT}") as raised:
        check(own_bundle)
    assert "goes on where it stopped" in raised.value.fix


def test_plan_is_refused_when_it_is_missing(built: Path) -> None:
    plan_of(built).unlink()
    with pytest.raises(InputError, match="missing") as raised:
        check(built)
    assert "build them again: atp-export engines" in raised.value.fix


def test_plan_is_refused_when_it_was_cut_short(built: Path) -> None:
    whole = plan_of(built).read_bytes()
    plan_of(built).write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"{len(whole) - 1} bytes") as raised:
        check(built)
    assert f"it had {len(whole)} bytes" in raised.value.why


@pytest.mark.parametrize("end", [b"!", b"}!"])
def test_plan_is_refused_when_it_was_changed(built: Path, end: bytes) -> None:
    plan_of(built).write_bytes(plan_of(built).read_bytes()[:-1] + end)
    with pytest.raises(CheckFailedError, match="instead of"):
        check(built)


def test_big_plan_is_hashed_again_only_when_it_was_touched(
    built: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_files, "_STAMPED_FROM", 1)
    assert check(built).file
    assert list(cache.rglob("*.json"))
    with monkeypatch.context() as patch:
        patch.setattr(recorded_files, "_sha256", lambda *_: "not asked")
        assert check(built).file
    content = plan_of(built).read_bytes()
    plan_of(built).write_bytes(content[:-1] + b"!")
    with pytest.raises(CheckFailedError, match="SHA-256"):
        check(built)


def test_plan_that_cannot_be_read_is_the_machines_fault(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(recorded_files, "_sha256", refuse)
    with pytest.raises(MachineError, match="Permission denied"):
        check(built)


@pytest.mark.parametrize("file", ["../../../elsewhere.plan", "/etc/hostname"])
def test_plan_outside_of_the_bundle_is_refused(own_bundle: Path, file: str) -> None:
    write_engines(own_bundle, change=changed(file=file))
    with pytest.raises(InputError, match=r"leads to|outside"):
        check(own_bundle)


def test_engine_is_refused_when_the_bundle_has_another_graph_now(
    built: Path, write_files: Callable[[Path, Manifest], None]
) -> None:
    graph = built / f"onnx/{SEGMENT}.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x12\x00")
    write_files(built, read_manifest(built))
    with pytest.raises(InputError, match="is not of this bundle") as raised:
        check(built)
    assert f"another onnx/{SEGMENT}.onnx" in raised.value.why


def test_engine_is_refused_when_its_graph_is_gone(own_bundle: Path) -> None:
    write_engines(own_bundle, change=changed(sources={"onnx/gone.onnx": "00"}))
    with pytest.raises(InputError, match="is not of this bundle"):
        check(own_bundle)


def test_engines_json_reads_back_as_it_was_written(built: Path) -> None:
    text = (built / TARGET.directory / "engines.json").read_text()
    assert Target(**json.loads(text)["target"]) == TARGET
    assert find_engines(Bundle.open(built), TARGET).engines == write_engines(built)
    assert record(b"").bytes == 0
