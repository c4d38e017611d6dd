"""What a report says about the machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from atp_runtime.evaluation.report import Machine

_PACKAGES = (
    "atp-llava",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "pillow",
    "tensorrt",
    "tokenizers",
)
_CPUINFO, _BOARD = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")


def package_version(name: str) -> str:
    """An installed package's version; "" if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def this_machine(threads: int | None) -> Machine:
    """The one this runs on.

    Args:
        threads: What the user asked for.
    """
    return Machine(
        processor=_processor(),
        processors=os.cpu_count() or 1,
        threads=threads,
        python=platform.python_version(),
        packages={name: package_version(name) for name in _PACKAGES if package_version(name)},
    )


def _processor() -> str:
    """A Jetson's board, a processor's name where Linux tells it, else its architecture."""
    try:
        if _BOARD.is_file():
            return _BOARD.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()
