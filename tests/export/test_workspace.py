from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from atp_export.workspace import (
    FinishedStep,
    Workspace,
    check_space,
    record_file,
    work_key,
    write_atomically,
)
from atp_runtime.errors import InputError, MachineError
from atp_runtime.manifest import FileRecord, Stage, TensorSpec
from atp_runtime.pruning_point import PruningPoint

STAGE = Stage(
    name="segment_0",
    kind="segment",
    graph="onnx/segment_0.onnx",
    data=("onnx/segment_0.data",),
    inputs=(TensorSpec("hidden_states", "float32", (1, "tokens", 4)),),
    outputs=(),
    layers=(0, 2),
    pruning=PruningPoint(2, "atp", {"strides": [2, 4]}, "points.0."),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def write_step(workspace: Workspace, name: str, content: bytes = b"content") -> FinishedStep:
    """Writes a step of one file."""
    path = workspace.root / f"{name}.data"
    path.write_bytes(content)
    step = FinishedStep(STAGE, {path.name: record_file(path)})
    workspace.finish(name, step)
    return step


def interrupted(bundle: Path, *names: str, key: str = "key") -> None:
    """An export that finished these steps and was interrupted."""
    with suppress(KeyboardInterrupt), Workspace(bundle, key).open() as workspace:
        for name in names:
            write_step(workspace, name)
        raise KeyboardInterrupt


def test_a_new_export_begins_with_nothing(bundle: Path) -> None:
    with Workspace(bundle, "key").open() as workspace:
        assert workspace.steps == {}
        assert workspace.resumed == ()
        assert workspace.root.name == "bundle.partial"
    assert not bundle.exists()


def test_an_export_resumes_behind_what_is_finished(bundle: Path) -> None:
    interrupted(bundle, "a", "b")
    with Workspace(bundle, "key").open() as workspace:
        assert workspace.resumed == ("a", "b")
        assert workspace.steps["b"].stage == STAGE
        assert workspace.steps["b"].files == {
            "b.data": record_file(workspace.root / "b.data"),
        }


def test_resuming_leaves_finished_files_untouched(bundle: Path) -> None:
    interrupted(bundle, "a")
    file = bundle.with_name("bundle.partial") / "a.data"
    before = file.stat().st_mtime_ns
    with Workspace(bundle, "key").open():
        assert file.stat().st_mtime_ns == before


def test_other_inputs_start_afresh(bundle: Path) -> None:
    interrupted(bundle, "a")
    with Workspace(bundle, "another key").open() as workspace:
        assert workspace.steps == {}
        assert not (workspace.root / "a.data").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"cont"),
        lambda path: path.write_bytes(b"CONTENT"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "truncated", "changed", "a directory"],
)
def test_a_step_whose_file_is_not_as_it_was_is_done_again(
    bundle: Path, damage: Callable[[Path], object]
) -> None:
    interrupted(bundle, "a", "b")
    damage(bundle.with_name("bundle.partial") / "a.data")
    with Workspace(bundle, "key").open() as workspace:
        assert workspace.resumed == ("b",)


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"key": "key", "steps": {"a": 1}}', b"\xff"])
def test_a_damaged_record_starts_afresh(bundle: Path, state: bytes) -> None:
    interrupted(bundle, "a")
    (bundle.with_name("bundle.partial") / "export-state.json").write_bytes(state)
    with Workspace(bundle, "key").open() as workspace:
        assert workspace.steps == {}


def test_a_second_export_of_the_same_bundle_is_refused_and_disturbs_nothing(bundle: Path) -> None:
    with Workspace(bundle, "key").open() as first:
        write_step(first, "a")
        with pytest.raises(InputError, match="another export is writing"):
            Workspace(bundle, "another key").open().__enter__()
        assert (first.root / "a.data").exists()
        first.publish()
    assert (bundle / "a.data").exists()


def test_an_export_of_another_process_is_noticed(bundle: Path) -> None:
    root = bundle.with_name("bundle.partial")
    root.mkdir()
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(root / "export.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another export"):
        Workspace(bundle, "key").open().__enter__()
    holder.communicate("")
    with Workspace(bundle, "key").open():
        pass


def test_a_lock_whose_directory_was_published_meanwhile_is_none(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def locks_after_the_other_published(file: object, how: int) -> None:
        real(file, how)  # type: ignore[arg-type]
        bundle.with_name("bundle.partial").rename(bundle)

    monkeypatch.setattr(fcntl, "flock", locks_after_the_other_published)
    with pytest.raises(InputError, match="another export"):
        Workspace(bundle, "key").open().__enter__()


def test_publishing_makes_the_directory_the_bundle_without_the_records_of_the_work(
    bundle: Path,
) -> None:
    with Workspace(bundle, "key").open() as workspace:
        write_step(workspace, "a")
        workspace.publish()
    assert sorted(path.name for path in bundle.iterdir()) == ["a.data"]
    assert not workspace.root.exists()


def test_publishing_replaces_an_empty_directory(bundle: Path) -> None:
    bundle.mkdir()
    with Workspace(bundle, "key").open() as workspace:
        write_step(workspace, "a")
        workspace.publish()
    assert (bundle / "a.data").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_an_export_fails_before_its_first_step(
    bundle: Path, error: type[BaseException]
) -> None:
    with suppress(error), Workspace(bundle, "key").open() as workspace:
        (workspace.root / "half.data").write_bytes(b"half")
        raise error
    assert list(bundle.parent.iterdir()) == []


def test_a_failed_write_is_told_with_the_place(bundle: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, Workspace(bundle, "key").open():
        Path("/dev/full").write_text("a state that does not fit")
    assert caught.value.filename == str(bundle.with_name("bundle.partial"))


def test_what_a_former_export_finished_survives_a_failure_while_resuming(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(bundle, "a")

    def interrupt(_path: Path) -> FileRecord:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("atp_export.workspace.record_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Workspace(bundle, "key").open().__enter__()
    with Workspace(bundle, "key").open() as workspace:
        assert workspace.resumed == ("a",)


@pytest.mark.parametrize("where", ["file/bundle", "file/deeper/bundle"])
def test_a_bundle_inside_of_a_file_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="no directory can be made"):
        Workspace(tmp_path / where, "key").open().__enter__()


def test_a_file_in_the_place_of_the_workspace_is_refused(bundle: Path) -> None:
    bundle.with_name("bundle.partial").write_text("in the way")
    with pytest.raises(InputError, match="no directory can be made"):
        Workspace(bundle, "key").open().__enter__()


def test_the_current_directory_can_become_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    workspace = Workspace(Path(), "key")
    assert workspace.root == tmp_path / "here.partial"


def test_records_are_size_and_sha256_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record_file(file) == FileRecord(3, digest)


def test_keys_are_equal_for_equal_parts_in_any_order_of_names() -> None:
    assert work_key({"a": 1, "b": (2,)}, None) == work_key({"b": [2], "a": 1}, None)
    assert work_key("a", "b") != work_key("ab")
    assert work_key({"a": 1}) != work_key({"a": 2})


def test_writing_atomically_replaces_the_whole_text(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "er.json"
    write_atomically(file, json.dumps({"a": 1}))
    write_atomically(file, "é")
    assert file.read_text(encoding="utf-8") == "é"
    assert [path.name for path in file.parent.iterdir()] == ["er.json"]


def test_a_disk_without_room_is_refused_with_both_sizes(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path, free // 2)
    with pytest.raises(MachineError, match="MB free") as caught:
        check_space(tmp_path, free + 10**15)
    assert f"{(free + 10**15) / 1e6:,.1f} MB" in caught.value.why
