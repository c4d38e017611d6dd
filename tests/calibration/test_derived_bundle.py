from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from atp_calibration.derived_bundle import LOCK_NAME, DerivedBundle, deriving
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.evaluation.data_file import sha256
from atp_runtime.manifest import MANIFEST_NAME

NAME = "onnx/segment_0.data"


@pytest.fixture
def source(two_dialects: Path) -> Bundle:
    return Bundle.open(two_dialects)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_derived_bundle_is_whole_and_says_where_it_comes_from(source: Bundle, out: Path) -> None:
    with deriving(source, out, "atp-calibrate ...", {"what": 1}) as new:
        new.replace_file(NAME, write("new weights"))
        new.update(processor=source.manifest.processor)
        new.add_report("calibration/report.md", "# Report\n")
    made = Bundle.open(out)
    assert (out / NAME).read_text() == "new weights"
    assert (out / "calibration/report.md").read_text() == "# Report\n"
    step = made.manifest.derivations[-1]
    assert step.command == "atp-calibrate ..."
    assert step.source_manifest == sha256(source.root / MANIFEST_NAME)
    assert files(out) == {*made.manifest.files, MANIFEST_NAME, "calibration/report.md"}
    assert not out.with_name("out.partial").exists()


def test_unchanged_files_are_copies_and_the_source_stays_as_it_was(
    source: Bundle, out: Path
) -> None:
    before = {name: sha256(source.path(name)) for name in source.manifest.files}
    with deriving(source, out, "", {}) as new:
        new.staged()  # copies all of them, also the one that is replaced afterwards
        new.replace_file(NAME, write("new"))
    assert {name: sha256(source.path(name)) for name in source.manifest.files} == before
    assert {name: sha256(out / name) for name in before if name != NAME} == {
        name: hash_ for name, hash_ in before.items() if name != NAME
    }


def test_onnx_takes_both_bundles(source: Bundle, out: Path) -> None:
    """Its checker refuses weights with a second hard link."""
    with deriving(source, out, "", {}):
        pass
    for stage in source.manifest.stages:
        onnx.checker.check_model(str(source.path(stage.graph)))
        onnx.checker.check_model(str(out / stage.graph))


def test_what_is_staged_can_be_opened_before_it_is_published(source: Bundle, out: Path) -> None:
    with deriving(source, out, "", {}) as new:
        new.update(provenance=replace(source.manifest.provenance, notice="changed"))
        assert Bundle.open(new.staged().root).manifest.provenance.notice == "changed"


def interrupted(source: Bundle, out: Path, request: object) -> None:
    with suppress(KeyboardInterrupt), deriving(source, out, "", {"it": request}) as new:
        new.replace_file(NAME, write(f"made for {request}"))
        (new.work / "seen").write_text("half")
        raise KeyboardInterrupt


def never(path: Path) -> None:
    pytest.fail(f"{path} is written again")


def test_an_interrupted_run_is_gone_on_with(source: Bundle, out: Path) -> None:
    interrupted(source, out, 1)
    assert not out.exists()
    assert not (out.with_name("out.partial") / MANIFEST_NAME).exists()
    with deriving(source, out, "", {"it": 1}) as new:
        assert new.resumed == (NAME,)
        assert (new.work / "seen").read_text() == "half"
        new.replace_file(NAME, never)
    assert (out / NAME).read_text() == "made for 1"


def test_what_another_request_left_is_dropped(source: Bundle, out: Path) -> None:
    interrupted(source, out, 1)
    with deriving(source, out, "", {"it": 2}) as new:
        assert not new.resumed
        assert not (new.work / "seen").exists()
    assert sha256(out / NAME) == source.manifest.files[NAME].sha256


def test_a_file_that_was_damaged_meanwhile_is_written_again(source: Bundle, out: Path) -> None:
    interrupted(source, out, 1)
    (out.with_name("out.partial") / NAME).write_text("damaged...")
    with deriving(source, out, "", {"it": 1}) as new:
        new.replace_file(NAME, write("again"))
    assert (out / NAME).read_text() == "again"


def test_a_file_made_of_something_else_is_written_again(source: Bundle, out: Path) -> None:
    with deriving(source, out, "", {}) as new:
        new.replace_file(NAME, write("first"), made_of="a")
        new.replace_file(NAME, never, made_of="a")
        new.replace_file(NAME, write("second"), made_of="b")
    assert (out / NAME).read_text() == "second"


def test_a_failed_write_leaves_no_part_of_a_file(source: Bundle, out: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), deriving(source, out, "", {}) as new:
        new.replace_file(NAME, fails)
    assert not out.with_name("out.partial").exists()


def test_nothing_is_ever_overwritten(source: Bundle, out: Path) -> None:
    out.mkdir()
    (out / "mine").write_text("keep")
    for path in (out, source.root):
        with pytest.raises(InputError, match=r"another directory|does not exist yet"):
            enter(source, path)
    assert (out / "mine").read_text() == "keep"


def test_two_writers_of_one_bundle_are_told_apart(source: Bundle, out: Path) -> None:
    partial = out.with_name("out.partial")
    partial.mkdir()
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(partial / LOCK_NAME)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(InputError, match="another process"):
            enter(source, out)
        assert holder.stdin
        holder.stdin.close()
    enter(source, out)


def test_a_bundle_derived_twice_lists_both_steps(source: Bundle, out: Path) -> None:
    with deriving(source, out, "first", {}):
        pass
    twice = out.with_name("twice")
    with deriving(Bundle.open(out), twice, "second", {}):
        pass
    commands = [step.command for step in Bundle.open(twice).manifest.derivations]
    assert commands == ["first", "second"]


def enter(source: Bundle, out: Path) -> None:
    with deriving(source, out, "", {}) as new:
        assert isinstance(new, DerivedBundle)
