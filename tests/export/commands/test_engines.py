"""`atp-export CHECKPOINT BUNDLE --engines`: exporting and building in one go."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.export.command_line import Run, assert_refused

from atp_export.commands import engines, export
from atp_export.engines.library import check_library
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.engine_set import read_engine_set


def test_engines_are_missed_before_anything_is_exported(
    run: Run,
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
    run: Run, checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
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
