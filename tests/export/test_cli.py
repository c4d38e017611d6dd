"""The command line: what is typed, what comes out, and the exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest

from atp_export.cli import main
from atp_export.commands import engines, export
from atp_export.engines.library import check_library
from atp_export.job import ExportJob
from atp_export.layout import EMBEDDING_FILE
from atp_export.pipeline import export_bundle
from atp_export.progress import Reporter
from atp_export.workspace import record_file
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.engine_set import read_engine_set


class Output:
    """What a command wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    """Runs `atp-export` in this process."""

    def run_here(*words: str | Path) -> Output:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Output(code, *capsys.readouterr())

    return run_here


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


def start(*words: str | Path) -> subprocess.Popen[str]:
    """Runs `atp-export` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "atp_export.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def assert_refused(output: Output, code: int, *parts: str) -> None:
    assert output.code == code
    assert output.out == ""
    what, why, fix = output.err.rstrip().split("\n")
    assert what.startswith("atp-export: ")
    assert why.startswith("  why: ")
    assert fix.startswith("  fix: ")
    for part in parts:
        assert part in output.err


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from atp_export.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'onnx', 'rich', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", script], check=False, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
        assert "Exit codes: 0 done" in done.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", ["inspect", "verify", "check", "engines", "doctor"])
def test_every_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: atp-export {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prune-at", "0"], "layer 0"),
        (["--prune-at", "99"], "layer 99"),
        (["--prune-at", "2,2"], "twice"),
        (["--prune-at", "3,1"], "after"),
        (["--prune-at", "x"], "not a list of layer numbers"),
        (["--prune-at", "1,"], "not a list of layer numbers"),
        (["--prune-at", ""], "not a list of layer numbers"),
        (["--prune-at", "1", "--dense"], "not allowed with"),
        (["--redundancy", "text"], "text"),
        (["--redundancy", "self", "--dense"], "nothing is pruned"),
        (["--max-tokens", "0"], "--max-tokens 0"),
        (["--max-tokens", "2049"], "2048"),
        (["--max-tokens", "many"], "--max-tokens"),
        (["--precision", "int8"], "int8"),
        (["--dialect", "french"], "french"),
        (["--parity", "maybe"], "maybe"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    run: Callable[..., Output], checkpoint: Path, bundle: Path, words: list[str], part: str
) -> None:
    assert_refused(run(checkpoint, bundle, *words), 2, part)
    assert not bundle.parent.exists()


@pytest.mark.parametrize("words", [[], ["--json"], ["inspect"], ["verify", "--quiet"]])
def test_missing_arguments_are_refused(run: Callable[..., Output], words: list[str]) -> None:
    output = run(*words)
    assert output.code == 2
    assert "required" in output.err


def test_an_error_is_one_json_document_when_json_is_asked_for(
    run: Callable[..., Output], checkpoint: Path, bundle: Path
) -> None:
    for words in (["--prune-at", "99"], ["--frobnicate"]):
        output = run(checkpoint, bundle, "--json", *words)
        assert output.code == 2
        assert output.document["error"].keys() == {"what", "why", "fix", "exit_code"}
        assert output.document["error"]["exit_code"] == 2


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    run: Callable[..., Output], checkpoint: Path, bundle: Path
) -> None:
    output = run(checkpoint, bundle, "--dry-run")
    assert output.code == 0
    assert output.err == ""
    for part in ("segment_3", "past_key_values.{l}.key|value", "Orin Nano 8GB", "16 visual tokens"):
        assert part in output.out
    assert not bundle.parent.exists()


def test_a_dry_run_is_a_document_when_json_is_asked_for(
    run: Callable[..., Output], checkpoint: Path, bundle: Path
) -> None:
    document = run(checkpoint, bundle, "--dry-run", "--json", "--dense").document
    assert document.keys() == {"plan", "stages", "footprint"}
    assert [segment["name"] for segment in document["plan"]["segments"]] == ["segment_0"]
    assert document["stages"]["vision"]["inputs"][0]["shape"] == ["images", 3, 32, 32]
    assert document["footprint"]["export_peak"] > 0


def test_export_verify_and_inspect_end_to_end(
    run: Callable[..., Output], checkpoint: Path, bundle: Path
) -> None:
    words = ("--precision", "fp32", "--prune-at", "2", "--redundancy", "self")
    exported = run(checkpoint, bundle, *words, "--json")
    assert exported.code == 0
    document = exported.document
    assert document["parity"]["passed"] is True
    assert document["unchanged"] is False
    assert "untrained" in document["notice"]
    assert exported.err == ""

    verified = run("verify", bundle, "--checkpoint", checkpoint, "--parity", "sampled")
    assert verified.code == 0
    assert "✓ hashes" in verified.out
    assert "✓ ONNX checker: vision, segment_0, segment_1, head" in verified.out
    assert "✓ parity" in verified.out

    shown = run("inspect", bundle)
    assert shown.code == 0
    assert f"made by: atp-export {checkpoint} {bundle} --precision fp32" in shown.out
    document = run("inspect", bundle, "--json").document
    assert document["precision"] == "fp32"
    points = [stage["pruning"] for stage in document["stages"] if stage["pruning"]]
    assert [point["parameters"]["redundancy"] for point in points] == ["self"]

    again = run(checkpoint, bundle, *words)
    assert again.code == 0
    assert "already there" in again.out
    assert "compared" not in again.out
    other = run(checkpoint, bundle, "--precision", "fp16")
    assert_refused(other, 2, "holds another bundle")


def test_an_unchecked_bundle_that_is_there_is_said_to_be_unchecked(
    run: Callable[..., Output], checkpoint: Path, published: ExportJob
) -> None:
    words = ("--precision", "fp32", "--prune-at", "2", "--dialect", "portable")
    output = run(checkpoint, published.bundle, *words)
    assert output.code == 0
    assert "not compared with PyTorch" in output.out


def test_quiet_leaves_both_outputs_empty(run: Callable[..., Output], tiny: Any) -> None:
    output = run("verify", tiny.bundle, "--quiet")
    assert (output.code, output.out, output.err) == (0, "", "")


def test_progress_goes_to_standard_error_and_results_to_standard_output(
    run: Callable[..., Output], tiny: Any
) -> None:
    output = run("verify", tiny.bundle)
    assert "hashes: " in output.err
    assert "✓ hashes" in output.out
    assert "✓" not in output.err


@pytest.mark.parametrize("json_words", [[], ["--json"]])
def test_a_tampered_bundle_fails_verification_with_code_1(
    run: Callable[..., Output], tiny: Any, tmp_path: Path, json_words: list[str]
) -> None:
    copy = Path(shutil.copytree(tiny.bundle, tmp_path / "copy"))
    data = bytearray((copy / "onnx/head.data").read_bytes())
    data[-1] ^= 1
    (copy / "onnx/head.data").write_bytes(data)
    output = run("verify", copy, *json_words)
    assert output.code == 1
    assert "head.data" in output.err
    if json_words:
        assert output.document["error"]["exit_code"] == 1


def test_a_refused_graph_is_a_document_with_checks_and_error(
    run: Callable[..., Output], tiny: Any, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny.bundle, tmp_path / "copy"))
    (copy / "onnx/head.onnx").write_bytes(b"hello")
    manifest = json.loads((copy / "manifest.json").read_text())
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of "hello"
    manifest["files"]["onnx/head.onnx"] = {"bytes": 5, "sha256": digest}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    output = run("verify", copy, "--json")
    assert output.code == 1
    assert output.document["passed"] is False
    assert output.document["stages"] == [
        "vision",
        "segment_0",
        "segment_1",
        "segment_2",
        "segment_3",
    ]
    assert output.document["error"]["why"].startswith("head: ")
    assert_refused(Output(1, "", run("verify", copy, "--quiet").err), 1, "head: ")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_bundle_is_refused(
    run: Callable[..., Output], checkpoint: Path, command: str
) -> None:
    assert_refused(run(command, checkpoint), 2, "no manifest.json")


def test_a_missing_checkpoint_is_refused(run: Callable[..., Output], bundle: Path) -> None:
    assert_refused(run("/no/such/checkpoint", bundle), 2, "/no/such/checkpoint")


def test_the_checkpoint_is_no_place_for_the_bundle(
    run: Callable[..., Output], checkpoint: Path
) -> None:
    assert_refused(run(checkpoint, checkpoint), 2, "is the checkpoint itself")


def test_a_bundle_inside_of_a_file_is_refused(
    run: Callable[..., Output], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(run(checkpoint, tmp_path / "file" / "bundle"), 2, "in the way")


def test_a_place_that_cannot_be_written_is_the_machines_fault(
    run: Callable[..., Output], checkpoint: Path
) -> None:
    # Nobody, not even root, makes directories there.
    assert_refused(run(checkpoint, "/proc/bundle"), 3, "/proc/bundle.partial")


def test_the_doctor_reports_as_text_and_as_a_document(run: Callable[..., Output]) -> None:
    assert "✓ Python" in run("doctor").out
    subjects = [finding["subject"] for finding in run("doctor", "--json").document]
    assert subjects[0] == "Python"


def test_engines_are_missed_before_anything_is_exported(
    run: Callable[..., Output],
    checkpoint: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    output = run(checkpoint, bundle, "--engines", "--parity", "off")
    assert_refused(output, 3, "tensorrt", "JetPack")
    assert not bundle.exists()
    assert not bundle.with_name("bundle.partial").exists()


def test_an_export_can_build_its_engines(
    run: Callable[..., Output], checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
    # TensorRT-RTX builds and ONNX Runtime runs, as TensorRT would on a device.
    monkeypatch.setattr(export, "device_library", check_library)
    monkeypatch.setattr(engines, "open_backend", lambda _name: OnnxRuntimeBackend(threads=1))
    words = ("--engines", "--prune-at", "2", "--parity", "off", "--max-tokens", "64", "--json")

    output = run(checkpoint, bundle, *words)

    assert output.code == 0
    document = json.loads(output.out)["engines"]
    assert [stage["stage"] for stage in document["stages"]] == [
        "vision",
        "segment_0",
        "segment_1",
        "head",
    ]
    made = read_engine_set(Path(document["directory"]))
    assert made.dialect == "native"
    assert made.engines["segment_0"].profiles[0].axes["tokens"].maximum == 64
    assert document["check"]["passed"]


def test_check_prints_what_became_of_every_graph(
    run: Callable[..., Output], tiny: Any, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
    own = Path(shutil.copytree(tiny.bundle, tmp_path / "own"))

    output = run("check", own, "--max-tokens", "64")

    assert output.code == 0
    assert "graphs became engines" in output.out
    assert "does not prove speed" in output.out
    report = json.loads((own / "reports/check.json").read_text())
    assert report["passed"]
    assert {verdict["precision"] for verdict in report["verdicts"]} == {"fp32", "int8"}


def test_a_failed_check_ends_with_code_1(
    run: Callable[..., Output], tiny: Any, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
    own = Path(shutil.copytree(tiny.bundle, tmp_path / "own"))
    path = own / "onnx/head.onnx"
    model = onnx.load(path, load_external_data=False)
    model.opset_import[0].version = 21
    onnx.save(model, path)
    manifest = json.loads((own / "manifest.json").read_text())
    record = record_file(path)
    manifest["files"]["onnx/head.onnx"] = {"bytes": record.bytes, "sha256": record.sha256}
    (own / "manifest.json").write_text(json.dumps(manifest))

    output = run("check", own, "--json")

    assert output.code == 1
    document = json.loads(output.out)
    assert list(document["lint"]) == ["fp32 head"]
    assert "TensorRT 10.3" in document["error"]["why"]


def test_a_full_disk_ends_with_code_3_and_keeps_what_was_finished(
    run: Callable[..., Output],
    make_job: Callable[..., ExportJob],
    stumble_at: Callable[[str], Reporter],
    checkpoint: Path,
) -> None:
    job = make_job(prune_at=[2])
    with suppress(KeyboardInterrupt):
        export_bundle(job, parity="off", reporter=stumble_at("embedding"))
    # Every write to this device fails as on a full disk.
    partial = job.bundle.with_name("bundle.partial")
    (partial / EMBEDDING_FILE).symlink_to("/dev/full")
    words = (
        "--precision",
        "fp32",
        "--prune-at",
        "2",
        "--dialect",
        "portable",
        "--parity",
        "off",
        "--quiet",
    )
    output = run(checkpoint, job.bundle, *words)
    assert_refused(output, 3, "embed_tokens.npy: the disk is full", "again")
    assert not job.bundle.exists()
    assert finished_steps(partial) == {"processor"}


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=[pytest.mark.slow])],
)
def test_an_export_that_was_stopped_resumes_to_the_same_bytes(
    run: Callable[..., Output],
    checkpoint: Path,
    published: ExportJob,
    bundle: Path,
    number: signal.Signals,
    code: int,
) -> None:
    words = ("--precision", "fp32", "--prune-at", "2", "--dialect", "portable", "--parity", "off")
    process = start(checkpoint, bundle, *words)
    partial = bundle.with_name("bundle.partial")
    wait_until(lambda: "vision" in finished_steps(partial), process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code
    assert out == ""
    if number == signal.SIGINT:
        assert "interrupted" in err
        assert "Traceback" not in err
    assert not bundle.exists()
    kept = {path: path.stat().st_mtime_ns for path in partial.glob("onnx/vision.*")}
    assert len(kept) == 2

    resumed = run(checkpoint, bundle, *words, "--json").document
    assert {"processor", "embedding", "vision"} <= set(resumed["resumed"])
    for path, modified in kept.items():
        assert (bundle / path.relative_to(partial)).stat().st_mtime_ns == modified

    names = sorted(path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())
    whole = published.bundle
    assert names == sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    for name in names:
        if name.parts[0] not in ("reports", "manifest.json"):
            assert (bundle / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = (json.loads((root / "manifest.json").read_text()) for root in (bundle, whole))
    del first["provenance"]["command"], second["provenance"]["command"]
    assert first == second


def finished_steps(partial: Path) -> set[str]:
    try:
        return set(json.loads((partial / "export-state.json").read_text())["steps"])
    except FileNotFoundError:
        return set()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(12000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it never came to that")
