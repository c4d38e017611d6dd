"""`atp-export check`: the table, the report in the bundle, and the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.export.command_line import Run

from atp_export.workspace import record_file

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")


def test_check_prints_what_became_of_every_graph(run: Run, tiny: Any, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny.bundle, tmp_path / "own"))

    output = run("check", own, "--max-tokens", "64")

    assert output.code == 0
    assert "graphs became engines" in output.out
    assert "does not prove speed" in output.out
    report = json.loads((own / "reports/check.json").read_text())
    assert report["passed"]
    assert {verdict["precision"] for verdict in report["verdicts"]} == {"fp32", "int8"}


def test_a_failed_check_ends_with_code_1(run: Run, tiny: Any, tmp_path: Path) -> None:
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
