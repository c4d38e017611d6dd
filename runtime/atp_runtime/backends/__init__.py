"""What runs the stages of a bundle: one interface, one module per runtime library.

Importing this package loads none of those libraries.
"""

from __future__ import annotations

from atp_runtime.backends.base import (
    Backend,
    DeviceArray,
    DeviceBuffer,
    LoadedStage,
    Traffic,
    item_size,
)
from atp_runtime.errors import InputError

BACKENDS = ("onnxruntime",)

__all__ = [
    "BACKENDS",
    "Backend",
    "DeviceArray",
    "DeviceBuffer",
    "LoadedStage",
    "Traffic",
    "item_size",
    "open_backend",
]


def open_backend(name: str = "onnxruntime", *, threads: int | None = None) -> Backend:
    """The backend of that name, its library loaded.

    Args:
        name: One of `BACKENDS`.
        threads: Threads of one operator; None leaves the number to the library.

    Raises:
        InputError: There is no such backend, or `threads` is not positive.
        MachineError: Its library is not installed or cannot be loaded.
    """
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise InputError(f"no backend {name!r}", why=f"there is {known}.", fix=f"choose {known}.")
    from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend  # noqa: PLC0415

    return OnnxRuntimeBackend(threads=threads)
