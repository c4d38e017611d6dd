"""INT8 bundles, calibrated on drawn scenes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.workbench import WORK

_SAMPLES = 4


def quantised_bundle(source: Path) -> Path:
    """The bundle with 8-bit decoder and head, made unless it is there.

    Few samples do: ranges decide how good answers are, not how long they take.

    Args:
        source: An FP32 bundle.

    Raises:
        CalledProcessError: It could not be made.
    """
    path = source.with_name(f"{source.name}-int8")
    scenes = WORK / "scenes"
    if not (scenes / "scenes-train.json").is_file():
        command = [sys.executable, "-m", "atp_models.demo.data", "scenes-train", str(scenes)]
        _run([*command, "--scenes", "8", "--questions", "4"])
    if not (path / "manifest.json").is_file():
        command = [sys.executable, "-m", "atp_calibration.cli", str(source)]
        words = ["--precision", "int8", "--parts", "decoder,head", "--samples", str(_SAMPLES)]
        _run([*command, str(scenes / "scenes-train.json"), str(path), *words])
    return path


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
