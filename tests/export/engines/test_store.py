from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from atp_export.engines import store
from atp_export.engines.build import BuiltEngine
from atp_export.engines.inspection import Inspection, Network
from atp_export.engines.store import EngineDirectory
from atp_runtime.engine_set import PREFILL, EngineProfile, Target, read_engine_set
from atp_runtime.errors import InputError
from atp_runtime.manifest import AxisRange

TARGET = Target("tensorrt", "10.3.0", 87, "Orin")
SOURCES = {"onnx/head.onnx": "0" * 64}
PROFILES = (EngineProfile(PREFILL, {"tokens": AxisRange(1, 1, 9)}),)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def directory(tmp_path: Path) -> Callable[..., EngineDirectory]:
    """The directory of a target and dialect, as a new process sees it."""

    def make(target: Target = TARGET, dialect: str = "portable") -> EngineDirectory:
        return EngineDirectory(tmp_path, target, dialect)

    return make


def built(content: bytes) -> BuiltEngine:
    return BuiltEngine(memoryview(content), Network(9, {}), Inspection(12, 3456, {}), b"", 1.5)


def with_engines(directory: EngineDirectory, **contents: bytes) -> Path:
    with directory.open():
        for stage, content in contents.items():
            directory.add(stage, built(content), PROFILES, f"stamp of {stage}", SOURCES)
    return directory.root


def test_what_is_added_is_what_the_runtime_reads(directory: Callable[..., EngineDirectory]) -> None:
    root = with_engines(directory(), head=b"a plan")
    engines = read_engine_set(root)
    assert (engines.target, engines.dialect) == (TARGET, "portable")
    engine = engines.engines["head"]
    assert (root / engine.file).read_bytes() == b"a plan"
    assert engine.record.bytes == 6
    assert (engine.layers, engine.scratch_bytes, engine.seconds) == (12, 3456, 1.5)
    assert engine.profiles == PROFILES


def test_nothing_but_engines_is_left_behind(directory: Callable[..., EngineDirectory]) -> None:
    root = with_engines(directory(), head=b"a plan")
    assert sorted(path.name for path in root.iterdir()) == ["engines.json", "head.plan"]


def test_an_engine_of_the_same_is_reused(directory: Callable[..., EngineDirectory]) -> None:
    with_engines(directory(), head=b"a plan")
    with directory().open() as again:
        assert again.reusable("head", "stamp of head") == again.engines["head"]
        assert again.reusable("head", "stamp of something else") is None
        assert again.reusable("vision", "stamp of head") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: plan.unlink(),
        lambda plan: plan.write_bytes(b"a pl"),
        lambda plan: plan.write_bytes(b"A PLAN"),
        lambda plan: (plan.unlink(), plan.mkdir()),
    ],
    ids=["missing", "truncated", "changed", "a directory"],
)
def test_a_damaged_engine_is_not_reused(
    directory: Callable[..., EngineDirectory], damage: Callable[[Path], object]
) -> None:
    root = with_engines(directory(), head=b"a plan")
    with directory().open() as again:
        assert again.reusable("head", "stamp of head")
    damage(root / "head.plan")
    with directory().open() as again:
        assert again.reusable("head", "stamp of head") is None


@pytest.mark.parametrize(
    ("target", "dialect"),
    [(replace(TARGET, gpu="another Orin"), "portable"), (TARGET, "native")],
    ids=["another GPU of that kind", "another dialect"],
)
def test_engines_of_something_else_are_forgotten(
    directory: Callable[..., EngineDirectory], target: Target, dialect: str
) -> None:
    with_engines(directory(), head=b"a plan")
    with directory(target, dialect).open() as other:
        assert other.engines == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "atp-engines"}'])
def test_a_damaged_list_starts_afresh(directory: Callable[..., EngineDirectory], text: str) -> None:
    root = with_engines(directory(), head=b"a plan")
    (root / "engines.json").write_text(text)
    with directory().open() as again:
        assert again.engines == {}


def test_a_rebuilt_engine_is_never_listed_with_the_old_ones_hash(
    directory: Callable[..., EngineDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = with_engines(directory(), head=b"old", vision=b"kept")

    def die(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), directory().open() as again, monkeypatch.context() as patch:
        real = Path.replace
        patch.setattr(
            Path, "replace", lambda s, t: die(s, t) if s.name == "head.plan.new" else real(s, t)
        )
        again.add("head", built(b"new"), PROFILES, "another stamp", SOURCES)
    assert set(read_engine_set(root).engines) == {"vision"}
    with directory().open() as again:
        assert not (root / "head.plan.new").exists()
        assert again.reusable("vision", "stamp of vision")


def test_a_plan_that_cannot_be_written_leaves_nothing(
    directory: Callable[..., EngineDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = with_engines(directory(), vision=b"kept")
    monkeypatch.setattr(store, "_BLOCK", 1)
    content = memoryview(b"a plan")

    class Full:
        nbytes = 6

        def __getitem__(self, part: slice) -> memoryview:
            if part.start == 3:
                raise OSError(28, "No space left on device")
            return content[part]

    with directory().open() as again, pytest.raises(OSError, match="No space"):
        again.add("head", replace(built(b""), plan=Full()), PROFILES, "", SOURCES)  # type: ignore[arg-type]
    assert sorted(path.name for path in root.iterdir()) == ["engines.json", "vision.plan"]
    assert set(read_engine_set(root).engines) == {"vision"}


def test_engines_of_stages_that_are_gone_are_removed(
    directory: Callable[..., EngineDirectory],
) -> None:
    root = with_engines(directory(), segment_0=b"one", segment_1=b"two")
    with directory().open() as again:
        again.keep_only(("segment_0",))
    assert set(read_engine_set(root).engines) == {"segment_0"}
    assert not (root / "segment_1.plan").exists()


def test_measured_timings_are_kept(directory: Callable[..., EngineDirectory]) -> None:
    with directory().open() as first:
        assert first.timing_cache == b""
        first.keep_timing_cache(b"timings")
        first.keep_timing_cache(b"")
    with directory().open() as again:
        assert again.timing_cache == b"timings"


def test_a_directory_in_which_nothing_was_built_goes_away(
    directory: Callable[..., EngineDirectory], tmp_path: Path
) -> None:
    with suppress(KeyboardInterrupt), directory().open():
        raise KeyboardInterrupt
    assert not (tmp_path / TARGET.directory).exists()


def test_a_second_builder_is_refused_and_disturbs_nothing(
    directory: Callable[..., EngineDirectory],
) -> None:
    with directory().open() as first:
        with pytest.raises(InputError, match="another atp-export engines"):
            directory().open().__enter__()
        first.add("head", built(b"a plan"), PROFILES, "", SOURCES)
    assert set(read_engine_set(first.root).engines) == {"head"}


def test_a_builder_in_another_process_is_noticed(
    directory: Callable[..., EngineDirectory], tmp_path: Path
) -> None:
    root = tmp_path / TARGET.directory
    root.mkdir(parents=True)
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(root / "build.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another"):
        directory().open().__enter__()
    holder.communicate("")
    with directory().open():
        pass
