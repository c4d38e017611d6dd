"""Finds the CUDA runtime library and calls it, telling errors as this program does.

Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import (
    POINTER,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_size_t,
    c_uint,
    c_ulonglong,
    c_void_p,
)
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from atp_runtime.errors import MachineError

_HANDLE = POINTER(c_void_p)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaEventCreate": (_HANDLE,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaFree": (c_void_p,),
    "cudaFreeHost": (c_void_p,),
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaGetDeviceProperties": (POINTER(c_char), c_int),
    "cudaGetLastError": (),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    # cudaGraphInstantiate itself has other parameters since CUDA 12.
    "cudaGraphInstantiateWithFlags": (_HANDLE, c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaHostAlloc": (_HANDLE, c_size_t, c_uint),
    "cudaMalloc": (_HANDLE, c_size_t),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMemcpy2DAsync": (
        c_void_p,
        c_size_t,
        c_void_p,
        c_size_t,
        c_size_t,
        c_size_t,
        c_int,
        c_void_p,
    ),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaMemset2DAsync": (c_void_p, c_size_t, c_int, c_size_t, c_size_t, c_void_p),
    "cudaSetDevice": (c_int,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamCreateWithFlags": (_HANDLE, c_uint),
    "cudaStreamEndCapture": (c_void_p, _HANDLE),
    "cudaStreamSynchronize": (c_void_p,),
}
_NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_TOOLKIT = Path("/usr/local/cuda/lib64")
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_USE_CPU = "on a machine without a GPU, use --backend onnxruntime."


class OutOfDeviceMemoryError(MachineError):
    """The CUDA runtime could not allocate."""


class Cudart:
    """The CUDA runtime API.

    Args:
        library: libcudart, as `ctypes` loads it.
    """

    def __init__(self, library: Any) -> None:
        self._functions: dict[str, Any] = {}
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        self._describe = library.cudaGetErrorString
        self._describe.argtypes, self._describe.restype = (c_int,), c_char_p

    def function(self, name: str) -> Any:
        """The bare function, which returns an error code."""
        return self._functions[name]

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function.

        Raises:
            OutOfDeviceMemoryError: It could not allocate.
            MachineError: It failed, or something enqueued before did.
        """
        code = self._functions[name](*arguments)
        if code == 0:
            return
        self._functions["cudaGetLastError"]()  # else the next call would report it again
        if code == _OUT_OF_MEMORY:
            raise OutOfDeviceMemoryError(
                "the GPU has no memory left",
                why=f"CUDA could not allocate what it needs ({name}).",
                fix="close other programs that use the GPU.",
            )
        raise MachineError(
            f"CUDA: {self.describe(code)} ({name})",
            why="the GPU, its driver or something it was asked to do before failed; this process "
            "may not be able to use it any more.",
            fix="start again. If it happens again, look into the kernel's log (dmesg), and run "
            "the same with --backend onnxruntime.",
        )

    def describe(self, code: int) -> str:
        """What CUDA calls an error."""
        text = self._describe(code)
        return text.decode(errors="replace") if text else f"error {code}"

    def check_gpu(self) -> None:
        """Makes sure that there is a GPU.

        Raises:
            MachineError: There is none, or its driver is missing or too old.
        """
        count = c_int()
        code = self._functions["cudaGetDeviceCount"](ctypes.byref(count))
        if code == 0 and count.value > 0:
            return
        said = f": {self.describe(code)}" if code else ""
        raise MachineError(
            f"no GPU that CUDA can use{said}",
            why="this backend runs on an NVIDIA GPU.",
            fix="check that nvidia-smi lists it; in a container, start that with "
            f"--runtime nvidia or --gpus all; {_USE_CPU}",
        )


def load_cudart() -> Cudart:
    """Loads the library: a JetPack's, a toolkit's, or that of NVIDIA's Python packages.

    Raises:
        MachineError: There is none.
    """
    for name in _candidates():
        try:
            return Cudart(ctypes.CDLL(name))
        except (OSError, AttributeError):
            continue  # not there, or not a CUDA runtime: perhaps the next one is
    raise MachineError(
        "no CUDA runtime (libcudart.so.12 or .13)",
        why="device memory comes from it.",
        fix="on a Jetson it comes with JetPack: sudo apt install nvidia-jetpack; elsewhere: "
        f"python -m pip install nvidia-cuda-runtime; {_USE_CPU}",
    )


def _candidates() -> Iterator[str]:
    yield from _NAMES
    for name in _NAMES:
        yield str(_TOOLKIT / name)
    spec = find_spec("nvidia")  # the namespace of NVIDIA's wheels
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*/lib/libcudart.so.*"), reverse=True):
            yield str(path)
