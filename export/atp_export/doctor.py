"""What this machine has for exporting, building engines and running.

Needs nothing but Python itself: it is what one runs where something is missing.
"""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

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
        _packages("engines", ENGINE_PACKAGES, "JetPack brings TensorRT; pip install polygraphy"),
    )


def _jetson() -> Finding:
    model = Path("/proc/device-tree/model")
    if not model.is_file():
        return Finding("Jetson", "no", ok=True)
    return Finding("Jetson", model.read_text(errors="replace").strip("\0"), ok=True)


def _memory() -> Finding:
    sizes = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * 1024
    free, total = _gigabytes(sizes["MemAvailable"]), _gigabytes(sizes["MemTotal"])
    swap = _gigabytes(sizes["SwapTotal"])
    return Finding("memory", f"{free} of {total} available, swap {swap}", ok=True)


def _disk(directory: Path) -> Finding:
    usage = shutil.disk_usage(directory)
    found = f"{_gigabytes(usage.free)} of {_gigabytes(usage.total)} free in {directory}"
    return Finding("disk", found, ok=True)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


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


def print_findings(findings: tuple[Finding, ...]) -> None:
    """Prints a line per finding, and the remedy where something is missing."""
    for finding in findings:
        print(f"{'✓' if finding.ok else '✗'} {finding.subject}: {finding.found}")
        if not finding.ok:
            print(f"    to get it: {finding.fix}")
