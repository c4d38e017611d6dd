"""Versions of the packages that shape a bundle."""

from __future__ import annotations

from importlib import metadata

PACKAGES = ("atp-llava", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def package_versions() -> dict[str, str]:
    """Installed versions by distribution name; "not installed" for what is not."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
