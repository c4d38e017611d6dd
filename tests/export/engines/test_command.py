"""`atp-export engines`: what is typed, what comes out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atp_export.commands import engines as command
from atp_export.engines import comparison
from atp_export.engines.agreement import Array, TensorAgreement, compare_outputs
from atp_export.engines.options import add_engine_options
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.cli.command import CommandParser, add_output_options
from atp_runtime.engine_set import read_engine_set
from atp_runtime.errors import CheckFailedError, InputError, MachineError

if TYPE_CHECKING:
    from atp_export.engines.library import Library

PROGRAM = """
import sys
from pathlib import Path
from atp_export.engines.builder import build_engines
from atp_export.engines.library import check_library
from atp_export.engines.options import EngineOptions
from atp_export.progress import make_reporter
from atp_runtime.bundle import Bundle
from atp_runtime.cli.command import run_command

def work():
    bundle = Bundle.open(Path(sys.argv[1]))
    build_engines(bundle, check_library(), EngineOptions(), make_reporter(quiet=False))
    return 0

sys.exit(run_command("atp-export", work, as_json=False))
"""


def run(*words: str | Path) -> int:
    parser = CommandParser(prog="atp-export engines")
    add_engine_options(parser)
    add_output_options(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def pretend_device(rtx: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX builds and ONNX Runtime runs, as TensorRT would on a device."""
    monkeypatch.setattr(command, "device_library", lambda: rtx)
    monkeypatch.setattr(command, "open_backend", lambda name: OnnxRuntimeBackend(threads=1))


@pytest.mark.usefixtures("pretend_device")
def test_engines_are_built_checked_and_shown(
    own_built: Path, capsys: pytest.CaptureFixture[str], rtx: Library
) -> None:
    assert run(own_built, "--kept", "2") == 0
    shown = capsys.readouterr()
    for text in ("segment_0", "reused", "built", "portable graphs", "SM 86", "agrees"):
        assert text in shown.out
    assert "segment_1: built in" in shown.err
    assert (own_built / comparison.report_file(rtx.target)).is_file()
    assert run(own_built, "--kept", "2", "--no-check") == 0
    again = capsys.readouterr()
    assert "built" not in again.out.split()
    assert "agrees" not in again.out
    assert again.err == ""


@pytest.mark.usefixtures("pretend_device")
def test_json_is_one_document(own_built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(own_built, "--json") == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert shown.err == ""
    assert [stage["stage"] for stage in document["stages"]][-1] == "head"
    assert document["check"]["passed"] is True
    assert document["target"]["sm"] == 86


@pytest.mark.usefixtures("pretend_device")
def test_an_engine_that_computes_something_else_ends_with_1(
    own_built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(found: Mapping[str, Array], *others: Any) -> tuple[TensorAgreement, ...]:
        return compare_outputs({name: array * 2 for name, array in found.items()}, *others)

    monkeypatch.setattr(comparison, "compare_outputs", doubled)
    with pytest.raises(CheckFailedError, match="vision"):
        run(own_built)
    assert "no" in capsys.readouterr().out.split()
    assert run(own_built, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["exit_code"] == 1
    assert document["check"]["passed"] is False


def test_without_tensorrt_the_way_to_it_is_told(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MachineError, match="tensorrt") as caught:
        run(own_bundle)
    assert "JetPack" in caught.value.fix
    assert not (own_bundle / "engines").exists()


def test_a_dry_run_shows_memory_and_builds_nothing(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(small_bundle.rglob("*"))
    assert run(small_bundle, "--dry-run", "--kept", "2") == 0
    shown = capsys.readouterr().out
    for text in ("segment_1", "8 of up to 64 tokens", "memory available", "fits now"):
        assert text in shown
    assert run(small_bundle, "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["forecast"]["available_bytes"] > 0
    assert len(document["profiles"]["segment_0"]) == 2
    assert sorted(small_bundle.rglob("*")) == before


def test_a_dry_run_refuses_options_that_do_not_fit(small_bundle: Path) -> None:
    with pytest.raises(InputError, match="--kept"):
        run(small_bundle, "--dry-run", "--kept", "1,1")


def test_trtexec_commands_are_printed_one_to_a_line(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small_bundle, "--print-trtexec") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["mkdir"] + ["trtexec"] * 4
    assert run(small_bundle, "--print-trtexec", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"dialect": "portable", "commands": lines}


def test_trtexec_commands_in_a_dialect_that_is_not_there_are_refused(small_bundle: Path) -> None:
    with pytest.raises(InputError, match="native"):
        run(small_bundle, "--print-trtexec", "--dialect", "native")


@pytest.mark.slow
def test_ctrl_c_ends_a_build_with_130_and_keeps_finished_engines(
    rtx: Library, own_bundle: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(own_bundle)], stderr=subprocess.PIPE, text=True
    )
    root = own_bundle / rtx.target.directory
    wait_for((root / "vision.plan").exists)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "interrupted" in told
    names = {path.name for path in root.iterdir()}
    finished = read_engine_set(root).engines
    assert "vision" in finished
    assert "head" not in finished
    assert names == {"engines.json", *(engine.file for engine in finished.values())}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
