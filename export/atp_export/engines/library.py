"""Finds TensorRT and asks it what it can do; the only place that imports it.

Versions differ in what they have, so features are looked for, and versions never compared.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field
from typing import Any

from atp_runtime.backends.cuda_device import CudaDevice
from atp_runtime.engine_set import Target
from atp_runtime.errors import MachineError

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
# Ampere, like Orin's 87, which TensorRT-RTX does not know.
CHECKED_SM = 86
NO_GPU = "no GPU"
_NATIVE_LAYERS = ("add_attention", "add_rotary_embedding")
_HOW_TO_GET = {
    TENSORRT: "on a Jetson it comes with JetPack, for the system's Python: use that, or a virtual "
    "environment made with --system-site-packages; elsewhere: python -m pip install tensorrt",
    RTX: "python -m pip install tensorrt-rtx",
    "polygraphy": "python -m pip install 'polygraphy>=0.53'",
}


@dataclass(frozen=True)
class Library:
    """TensorRT, or TensorRT-RTX, which has the same API.

    Attributes:
        target: What it builds engines for.
        trt: The Python module.
    """

    target: Target
    trt: Any = field(repr=False, compare=False)

    @property
    def has_gpu(self) -> bool:
        """Whether the engines it builds can be opened here."""
        return self.target.gpu != NO_GPU

    @property
    def has_native_operators(self) -> bool:
        """Whether it has what the native dialect is made of."""
        return all(hasattr(self.trt.INetworkDefinition, name) for name in _NATIVE_LAYERS)


def device_library() -> Library:
    """TensorRT, for this machine's GPU. Not yet run on a GPU.

    Raises:
        MachineError: TensorRT or Polygraphy is not installed, or there is no GPU.
    """
    trt = _import(TENSORRT)
    gpu = CudaDevice.open()
    return Library(Target(TENSORRT, trt.__version__, gpu.sm, gpu.name), trt)


def check_library() -> Library:
    """TensorRT-RTX, building for Ampere on a machine without a GPU.

    Raises:
        MachineError: It or Polygraphy is not installed, or it cannot build for another GPU.
    """
    trt = _import(RTX)
    if not hasattr(trt.IBuilderConfig, "set_compute_capability"):
        raise MachineError(
            f"TensorRT-RTX {trt.__version__} builds for the GPU at hand only",
            why="the check wants an engine for Ampere, on any machine.",
            fix="python -m pip install --upgrade tensorrt-rtx",
        )
    return Library(Target(RTX, trt.__version__, CHECKED_SM, NO_GPU), trt)


def _import(name: str) -> Any:
    # Polygraphy decides once, when it is imported, which of the two it drives.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if name == RTX else "0"
    module = _import_or_tell(name)
    if not hasattr(module, "Builder"):
        raise _unusable(name, "it is empty; perhaps only its type stubs are installed")
    polygraphy = _import_or_tell("polygraphy.config")
    if (name == RTX) != polygraphy.USE_TENSORRT_RTX:
        raise RuntimeError("one process can use TensorRT or TensorRT-RTX, not both")
    return module


def _import_or_tell(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _unusable(name.partition(".")[0], str(error)) from error


def _unusable(package: str, reason: str) -> MachineError:
    return MachineError(
        f"the Python package {package} cannot be used: {reason}",
        why="engines are built with it.",
        fix=_HOW_TO_GET[package],
    )
