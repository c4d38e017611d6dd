"""Python, its packages, TensorRT, CUDA and the GPU."""

from __future__ import annotations

import json
import platform
import re
import sys
from dataclasses import replace

from atp_export.doctor.finding import Finding, Probe, reason
from atp_export.doctor.system import System

_EXPORT = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "optimum")
_RUNTIME = ("numpy", "onnxruntime", "tokenizers", "pillow", "jinja2", "safetensors")
_ENGINES = ("polygraphy", "rich")
_MODULES = (
    "usr/lib/python3*/dist-packages/tensorrt/__init__.py",
    "usr/local/lib/python3*/dist-packages/tensorrt/__init__.py",
)
_LIBRARIES = "usr/lib/*-linux-gnu/libnvinfer.so.*"
_GET_TENSORRT = (
    "on a Jetson: sudo apt install nvidia-jetpack; elsewhere: pip install 'atp-llava[tensorrt]'."
)


def python(subject: str, system: System) -> Finding:  # noqa: ARG001 - a probe
    """The interpreter."""
    return Finding(
        subject,
        platform.python_version(),
        ok=sys.version_info >= (3, 10),
        fix="use Python 3.10 or newer.",
    )


def machine(subject: str, system: System) -> Finding:  # noqa: ARG001 - a probe
    """The system and the architecture."""
    return Finding(subject, f"{platform.system()} {platform.machine()}")


def gpu(subject: str, system: System) -> Finding:
    """The GPU and its compute capability."""
    try:
        return Finding(subject, str(system.gpu()))
    except OSError as error:
        return Finding(
            subject,
            f"none that can be used: {reason(error)}",
            ok=False if system.is_jetson else None,
            fix="engines need one. In a container, start that with --runtime nvidia; else check "
            "the driver. Without a GPU: atp-run --backend onnxruntime.",
        )


def cuda(subject: str, system: System) -> Finding:
    """What the driver serves, and the toolkit that is installed."""
    parts = []
    try:
        parts.append(f"{system.gpu().cuda} served by the driver")
    except OSError:
        parts.append("no driver")
    try:
        versions = json.loads(system.text("usr/local/cuda/version.json"))
        parts.append(f"toolkit {versions['cuda']['version']}")
    except FileNotFoundError:
        parts.append("no toolkit")
    return Finding(subject, ", ".join(parts))


def tensorrt(subject: str, system: System) -> Finding:
    """TensorRT's Python module and its library; neither is loaded.

    JetPack installs the module for the system's Python only. `pip` finds no wheel of it for a
    Jetson.
    """
    module, library = system.version("tensorrt"), _library(system)
    found = f"Python module {module or 'missing'}, library {library or 'missing'}"
    if module is None:
        return Finding(subject, found, ok=_needed(system), fix=_module_fix(system))
    if library and library.split(".")[:2] != module.split(".")[:2]:
        fix = "the two must be of one version: install JetPack's python3-libnvinfer again."
        return Finding(subject, found, ok=False, fix=fix)
    return Finding(subject, found)


def packages(names: tuple[str, ...], fix: str) -> Probe:
    """A probe for Python distributions."""

    def probe(subject: str, system: System) -> Finding:
        versions = {name: system.version(name) for name in names}
        found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
        return Finding(subject, found, ok=None not in versions.values(), fix=fix)

    return probe


run_packages = packages(_RUNTIME, "pip install atp-llava")
engine_packages = packages(_ENGINES, "pip install polygraphy rich")
_export_packages = packages(_EXPORT, "pip install 'atp-llava[export]'")


def export_packages(subject: str, system: System) -> Finding:
    """What exporting takes, which is not done on a device."""
    finding = _export_packages(subject, system)
    if finding.ok or not system.is_jetson:
        return finding
    fix = "none is needed on a device: export elsewhere, and copy the bundle."
    return replace(finding, ok=None, fix=fix)


def _needed(system: System) -> bool | None:
    """What missing TensorRT is called: on a machine without a GPU nobody needs it."""
    try:
        system.gpu()
    except OSError:
        return False if system.is_jetson else None
    return False


def _library(system: System) -> str | None:
    versions = [path.name.removeprefix("libnvinfer.so.") for path in system.found(_LIBRARIES)]
    # The links .so.10 and .so.10.3.0 lead to one file; the longest tells most.
    return max(versions, key=len, default=None)


def _module_fix(system: System) -> str:
    modules = [path for pattern in _MODULES for path in system.found(pattern)]
    if not modules:
        return _GET_TENSORRT
    where = modules[-1].parent.parent
    match = re.search(r"python(3\.\d+)/", str(where))
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if match and match[1] != mine:
        return f"it is in {where}, for Python {match[1]}; this is {mine}. Use that Python."
    return (
        f"the system's Python has it in {where}, this one does not see that: make the virtual "
        "environment with --system-site-packages."
    )
