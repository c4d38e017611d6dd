"""`atp-export verify` and `inspect`: bundles that are not what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.export.command_line import Output, Run, assert_refused


@pytest.mark.parametrize("json_words", [[], ["--json"]])
def test_a_tampered_bundle_fails_verification_with_code_1(
    run: Run, tiny: Any, tmp_path: Path, json_words: list[str]
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
    run: Run, tiny: Any, tmp_path: Path
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
def test_what_is_no_bundle_is_refused(run: Run, checkpoint: Path, command: str) -> None:
    assert_refused(run(command, checkpoint), 2, "no manifest.json")
