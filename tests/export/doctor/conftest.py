"""Machines that see the made-up file systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tests.export.doctor.devices import AGX_ORIN, ORIN, ORIN_NANO

from atp_export.doctor import System

MakeSystem = Callable[[Mapping[str, str]], System]


@pytest.fixture
def make_system(tmp_path: Path) -> MakeSystem:
    """Writes the files below a root."""

    def make(files: Mapping[str, str]) -> System:
        root = tmp_path / "root"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return System(root, _no_program, _no_package, lambda: ORIN)

    return make


@pytest.fixture
def orin_nano(make_system: MakeSystem) -> System:
    """TensorRT 10.3.0 for Python, nvpmodel in mode 1."""
    said = "NV Power Mode: 25W\n1\n"
    return replace(make_system(ORIN_NANO), version=_version("10.3.0"), run=lambda *_: said)


@pytest.fixture
def agx_orin(make_system: MakeSystem) -> System:
    """TensorRT 10.16.1.11 for Python, nvpmodel in mode 0."""
    said = "NV Power Mode: MAXN\n0\n"
    gpu = replace(ORIN, cuda="13.2")
    changes = {"version": _version("10.16.1.11"), "run": lambda *_: said, "gpu": lambda: gpu}
    return replace(make_system(AGX_ORIN), **changes)


def _version(tensorrt: str) -> Callable[[str], str | None]:
    versions = {"tensorrt": tensorrt, "polygraphy": "0.53.6", "rich": "14.0.0"}
    return versions.get


def _no_program(*words: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", words[0])


def _no_package(name: str) -> str | None:
    return None
