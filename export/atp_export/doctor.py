"""What this machine has: packages, memory, disk, GPU, and what that allows."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from rich.console import Console

from atp_export.describe import megabytes

EXPORT_PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "optimum")
RUNTIME_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "pillow", "jinja2", "safetensors")
ENGINE_PACKAGES = ("tensorrt", "polygraphy")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `fix` says how to get it where it is missing."""

    subject: str
    found: str
    ok: bool
    fix: str = ""


def examine() -> tuple[Finding, ...]:
    """Looks at the machine; nothing is imported or changed."""
    return (
        Finding("Python", platform.python_version(), sys.version_info >= (3, 10), "Python >= 3.10"),
        Finding("machine", f"{platform.system()} {platform.machine()}", ok=True),
        _jetson(),
        _memory(),
        _disk(Path.cwd()),
        _packages("run (atp-run)", RUNTIME_PACKAGES, "pip install atp-llava"),
        _packages("export (atp-export)", EXPORT_PACKAGES, "pip install 'atp-llava[export]'"),
        _packages(
            "engines", ENGINE_PACKAGES, "JetPack brings TensorRT; pip install polygraphy"
        ),
    )


def _jetson() -> Finding:
    model = Path("/proc/device-tree/model")
    if not model.is_file():
        return Finding("Jetson", "no", ok=True)
    return Finding("Jetson", model.read_text(errors="replace").strip("\0"), ok=True)


def _memory() -> Finding:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    text = f"{megabytes(memory.available)} of {megabytes(memory.total)} free"
    return Finding("memory", f"{text}, swap {megabytes(swap.total)}", ok=True)


def _disk(directory: Path) -> Finding:
    usage = shutil.disk_usage(directory)
    return Finding("disk", f"{megabytes(usage.free)} of {megabytes(usage.total)} free", ok=True)


def _packages(subject: str, names: tuple[str, ...], fix: str) -> Finding:
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    return Finding(subject, found, ok=not missing, fix=fix)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def print_findings(findings: tuple[Finding, ...], console: Console) -> None:
    """Prints a line per finding, and the remedy where something is missing."""
    for finding in findings:
        mark = "✓" if finding.ok else "✗"
        console.print(f"{mark} {finding.subject}: {finding.found}", highlight=False, markup=False)
        if not finding.ok:
            console.print(f"    to get it: {finding.fix}", highlight=False, markup=False)
