"""Checkpoints and bundles that benchmarks share; made once and kept in `bench-output/work`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "bench-output"
WORK = OUTPUT / "work"
BIN = Path(sys.executable).parent


def checkpoint(shape: str) -> Path:
    """A checkpoint of that shape with random FP16 weights."""
    path = WORK / f"checkpoint-{shape}"
    if not (path / "config.json").is_file():
        command = [sys.executable, "-m", "atp_models.random_checkpoint", shape, str(path)]
        subprocess.run([*command, "--dtype", "float16"], check=True)
    return path


def bundle(shape: str, name: str, *options: str) -> Path:
    """A bundle of that shape, exported with `options` unless it is there."""
    path = WORK / f"bundle-{shape}-{name}"
    if not path.is_dir():
        command = [sys.executable, "-m", "atp_export.cli", str(checkpoint(shape)), str(path)]
        subprocess.run([*command, "--parity", "off", *options], check=True)
    return path
