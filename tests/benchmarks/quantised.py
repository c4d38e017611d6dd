"""Bundles in 8 and 4 bits, calibrated on drawn scenes, and how fast they are beside FP32."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.benchmarks.decoding import BundleRunner
from tests.benchmarks.measure import Row, at_least, interleaved, ratio
from tests.benchmarks.workbench import WORK, bundle

_SAMPLES = 4
_STEPS = 12
_PARTS = "decoder,head"
_PROMISED: dict[str, tuple[float | None, float | None]] = {"int8": (1.5, 1.8), "int4": (None, None)}
"""Speed-ups of prefill and of decode."""


def quantised(shape: str, rounds: int) -> list[Row]:
    """Prefill of a dense prompt of 640 tokens and decode behind it, against FP32 by turns."""
    exact = bundle(shape, "dense", "--precision", "fp32", "--dense")
    runners = {"fp32": BundleRunner(exact)}
    for precision in _PROMISED:
        runners[precision] = BundleRunner(quantised_bundle(exact, precision))
    prefill = interleaved(
        {name: partial(runner.prefill, 576) for name, runner in runners.items()}, rounds=rounds
    )
    decode = interleaved(
        {name: partial(runner.decode, _STEPS) for name, runner in runners.items()}, rounds=rounds
    )
    rows = [
        Row("fp32: prefill, 640 tokens", statistics.median(prefill["fp32"]), "s"),
        Row("fp32: per token", 1e3 * statistics.median(decode["fp32"]) / _STEPS, "ms"),
    ]
    for precision, promised in _PROMISED.items():
        measured = zip((prefill, decode), ("prefill", "decode"), promised, strict=True)
        for times, what, least in measured:
            name, value = f"{what}, fp32 / {precision}", ratio(times["fp32"], times[precision])
            rows.append(at_least(name, value, least) if least else Row(name, value, "x"))
    return rows


def quantised_bundle(source: Path, precision: str) -> Path:
    """The bundle with decoder and head in fewer bits, made unless it is there.

    Few samples do: ranges decide how good answers are, not how long they take.

    Args:
        source: An FP32 bundle.
        precision: "int8" or "int4".

    Raises:
        CalledProcessError: It could not be made.
    """
    path = source.with_name(f"{source.name}-{precision}")
    scenes = WORK / "scenes"
    if not (scenes / "scenes-train.json").is_file():
        command = [sys.executable, "-m", "atp_models.demo.data", "scenes-train", str(scenes)]
        _run([*command, "--scenes", "8", "--questions", "4"])
    if not (path / "manifest.json").is_file():
        command = [sys.executable, "-m", "atp_calibration.cli", str(source)]
        words = ["--precision", precision, "--parts", _PARTS, "--samples", str(_SAMPLES)]
        _run([*command, str(scenes / "scenes-train.json"), str(path), *words])
    return path


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
