from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from atp_export.progress import QuietReporter
from atp_export.verify import Verdict, failure, print_verdict, verify_bundle
from atp_export.workspace import record_file
from atp_runtime.errors import CheckFailedError, InputError

STAGES = ("vision", "segment_0", "segment_1", "segment_2", "segment_3", "head")


@pytest.fixture
def own_bundle(tiny: Any, tmp_path: Path) -> Path:
    """A copy of the bundle, for a test that changes it."""
    return Path(shutil.copytree(tiny.bundle, tmp_path / "own"))


def verify(bundle: Path, checkpoint: Path | None = None) -> Verdict:
    return verify_bundle(bundle, checkpoint, parity="sampled", reporter=QuietReporter())


def record_again(bundle: Path, name: str) -> None:
    """Makes the manifest believe what a file is now, as someone who tampers would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    record = record_file(bundle / name)
    manifest["files"][name] = {"bytes": record.bytes, "sha256": record.sha256}
    path.write_text(json.dumps(manifest))


def test_a_bundle_as_exported_passes(tiny: Any) -> None:
    verdict = verify(tiny.bundle)
    assert verdict.passed
    assert verdict.stages == STAGES
    assert verdict.files == len(json.loads((tiny.bundle / "manifest.json").read_text())["files"])
    assert verdict.parity is None
    assert failure(tiny.bundle, verdict) is None


@pytest.mark.parametrize(
    "name",
    [
        "onnx/segment_1.onnx",
        "onnx/segment_1.data",
        "onnx/embed_tokens.npy",
        "processor/config.json",
    ],
)
def test_one_changed_bit_of_any_file_is_found(own_bundle: Path, name: str) -> None:
    data = bytearray((own_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (own_bundle / name).write_bytes(data)
    with pytest.raises(CheckFailedError, match=Path(name).name):
        verify(own_bundle)


def test_a_missing_file_is_named(own_bundle: Path) -> None:
    (own_bundle / "onnx/head.data").unlink()
    with pytest.raises(InputError, match=r"head\.data is missing"):
        verify(own_bundle)


def test_a_truncated_file_is_named(own_bundle: Path) -> None:
    file = own_bundle / "onnx/head.data"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"head\.data"):
        verify(own_bundle)


def test_a_newer_schema_is_refused(own_bundle: Path) -> None:
    path = own_bundle / "manifest.json"
    manifest = {**json.loads(path.read_text()), "schema_version": 3}
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="schema version 3"):
        verify(own_bundle)


@pytest.mark.parametrize("where", ["nothing", "."])
def test_a_directory_without_a_bundle_is_refused(tmp_path: Path, where: str) -> None:
    with pytest.raises(InputError, match=r"manifest\.json"):
        verify(tmp_path / where)


def break_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def break_wiring(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nobody"


def break_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "Frobnicate"


@pytest.mark.parametrize("change", [break_type, break_wiring, break_operator])
def test_a_graph_that_the_checker_refuses_is_named_though_its_hash_is_right(
    own_bundle: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    name = "onnx/segment_2.onnx"
    model = onnx.load(own_bundle / name, load_external_data=False)
    change(model)
    (own_bundle / name).write_bytes(model.SerializeToString())
    record_again(own_bundle, name)
    verdict = verify(own_bundle)
    assert not verdict.passed
    assert verdict.stages == tuple(stage for stage in STAGES if stage != "segment_2")
    (problem,) = verdict.problems
    assert problem.startswith("segment_2: ")
    assert "\n" not in problem
    error = failure(own_bundle, verdict)
    assert error is not None
    assert error.why == problem


def test_a_file_that_is_no_graph_at_all_is_named(own_bundle: Path) -> None:
    (own_bundle / "onnx/head.onnx").write_bytes(b"hello")
    record_again(own_bundle, "onnx/head.onnx")
    verdict = verify(own_bundle)
    assert [problem.partition(":")[0] for problem in verdict.problems] == ["head"]


def test_a_bundle_with_a_refused_graph_is_not_run(tiny: Any, own_bundle: Path) -> None:
    (own_bundle / "onnx/head.onnx").write_bytes(b"hello")
    record_again(own_bundle, "onnx/head.onnx")
    verdict = verify(own_bundle, tiny.checkpoint)
    assert verdict.parity is None
    assert not verdict.passed


def test_another_checkpoint_is_refused_before_anything_is_compared(
    tiny: Any, checkpoint: Path
) -> None:
    with pytest.raises(InputError, match="not the checkpoint of this bundle"):
        verify(tiny.bundle, checkpoint)


def test_parity_is_checked_against_the_checkpoint(tiny: Any) -> None:
    verdict = verify(tiny.bundle, tiny.checkpoint)
    assert verdict.parity is not None
    assert verdict.parity.mode == "sampled"
    assert verdict.passed


@pytest.mark.parametrize("passed", [True, False])
def test_a_verdict_is_a_list_of_ticks(capsys: pytest.CaptureFixture[str], passed: bool) -> None:
    problems = () if passed else ("head: [bad] graph",)
    print_verdict(Verdict(9, ("vision",), problems, None), Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["✓ hashes of 9 files", "✓ ONNX checker: vision"]
    assert ("✗ ONNX checker: head: [bad] graph" in lines) is not passed
    reason = "no --checkpoint given" if passed else "a graph was refused"
    assert lines[-1] == f"- parity: not checked, {reason}"
