from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atp_calibration.cli import main
from atp_calibration.quantisation import command
from atp_runtime.bundle import Bundle
from atp_runtime.session import Session


def errors(text: str) -> dict[str, object]:
    return dict(json.loads(text)["error"])


def test_an_int8_bundle_answers(
    two_dialects: Path,
    scenes: Path,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = [str(two_dialects), str(scenes), str(out), "--samples", "8", "--threads", "1"]
    assert main([*words, "--precision", "int8", "--keep-high-precision", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "2 samples skipped" in printed.err
    assert "broken.png" in printed.err
    assert "int8:" in printed.err
    assert "--precision int8" in Bundle.open(out).manifest.derivations[-1].command
    with Session.open(out, threads=1) as session:
        assert session.ask("What is this?", photos[:1]).statistics.points


def test_json_is_one_document(
    two_dialects: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(two_dialects), str(scenes), str(tmp_path / "out"), "--json", "--samples", "2"]
    assert main([*words, "--precision", "int4", "--block-size", "32", "--threads", "1"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["quantisation"]["precision"] == "int4"
    assert not printed.err


def test_interrupted_it_goes_on_where_it_stopped(
    two_dialects: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = [str(two_dialects), str(scenes), str(out), "--samples", "2", "--threads", "1"]
    words += ["--precision", "int8", "--parts", "decoder", "--ranges", "minmax", "--quiet"]

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command._Work, "_decide", stops)
        assert main(words) == 130
    assert not out.exists()

    def never(*_: object) -> None:
        pytest.fail("the samples are run again")

    work = out.with_name("out.partial") / "work"
    decided = (work / "choices.jsonl").read_text()
    monkeypatch.setattr("atp_calibration.quantisation.observe._Pass.run", never)
    monkeypatch.setattr("atp_calibration.quantisation.stage_choices.search", never)
    assert main(words) == 0
    assert len(decided.splitlines()) == 16  # four inputs of each of four layers
    assert Bundle.open(out).manifest.quantisation


def test_accuracy_on_the_samples_decides_what_stays(
    two_dialects: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(two_dialects), str(scenes), str(tmp_path / "out"), "--json", "--samples", "2"]
    words += ["--precision", "int8", "--parts", "decoder", "--ranges", "minmax", "--threads", "1"]
    assert main([*words, "--max-accuracy-drop", "0"]) == 0
    # Nobody knows the answers before and after, so nothing is lost with all layers quantised.
    report = json.loads(capsys.readouterr().out)["quantisation"]
    assert report["accuracy"] == {"before": 0.0, "after": 0.0}
    assert all(row["quantised"] for row in report["layers"])


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "nothing to do"),
        (["--keep-high-precision", "3"], "without --precision"),
        (["--precision", "int8", "--keep-high-precision", "-1"], "--keep-high-precision -1"),
        (["--precision", "int8", "--max-accuracy-drop", "101"], "--max-accuracy-drop 101"),
        (["--precision", "int8", "--parts", "tail"], "tail"),
        (["--precision", "int8", "--recipe", "nothing.yaml"], "nothing.yaml"),
        (["--precision", "int8", "--samples", "1"], "1 sample"),
        (["--precision", "fp8"], "fp8"),
    ],
)
def test_wrong_input_is_told_and_leaves_nothing(
    two_dialects: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    what: str,
) -> None:
    out = tmp_path / "out"
    assert main([str(two_dialects), str(scenes), str(out), "--json", *words]) == 2
    error = errors(capsys.readouterr().out)
    assert what in str(error["what"])
    assert error["fix"]
    assert not any(tmp_path.iterdir())


def test_a_directory_that_is_there_is_not_overwritten(
    two_dialects: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("keep")
    words = [str(two_dialects), str(scenes), str(tmp_path), "--precision", "int8", "--json"]
    assert main(words) == 2
    assert "exists" in str(errors(capsys.readouterr().out)["what"])


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib; from atp_calibration.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'PIL', 'torch'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--precision" in done.stdout
