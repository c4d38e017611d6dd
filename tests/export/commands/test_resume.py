"""An export that was stopped, and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.export.command_line import Run, finished_steps

from atp_export.job import ExportJob


def start(*words: str | Path) -> subprocess.Popen[str]:
    """Runs `atp-export` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "atp_export.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=[pytest.mark.slow])],
)
def test_an_export_that_was_stopped_resumes_to_the_same_bytes(
    run: Run,
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


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(12000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it never came to that")
