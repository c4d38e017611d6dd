"""What runs the stages of a bundle: one interface, and a few libraries behind it.

Importing this package loads none of those libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atp_runtime.backends.base import (
    Backend,
    DeviceArray,
    DeviceBuffer,
    LoadedStage,
    Traffic,
    item_size,
)
from atp_runtime.errors import InputError

if TYPE_CHECKING:
    from atp_runtime.backends.layer_log import LayerLog

BACKENDS = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")

__all__ = [
    "BACKENDS",
    "Backend",
    "DeviceArray",
    "DeviceBuffer",
    "LoadedStage",
    "Traffic",
    "item_size",
    "open_backend",
    "open_layer_timing",
]


def open_backend(
    name: str = BACKENDS[0],
    *,
    threads: int | None = None,
    cuda_graphs: bool = True,
    packed: bool = True,
) -> Backend:
    """The backend of that name, its library loaded.

    Args:
        name: One of `BACKENDS`: ONNX Runtime on the CPU, with its CUDA or its TensorRT provider,
            or TensorRT with engines that `atp-export engines` built.
        threads: Threads of one operator on the CPU; None leaves the number to the library.
        cuda_graphs: Whether TensorRT's decode steps are recorded as CUDA graphs; the other
            backends record none.
        packed: Whether the CPU gets weights in another order, which pays from some ten answers; the
            other backends have theirs on the GPU.

    Raises:
        InputError: There is no such backend, or `threads` is not positive or of no use to it.
        MachineError: Its library or its GPU is missing or cannot be used.
    """
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise InputError(f"no backend {name!r}", why=f"there is {known}.", fix=f"choose {known}.")
    if name == "onnxruntime":
        from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend  # noqa: PLC0415

        return OnnxRuntimeBackend(threads=threads, packed=packed)
    if threads is not None:
        raise InputError(
            f"threads: {threads}",
            why=f"the backend {name} runs on the GPU.",
            fix="leave the number of threads away.",
        )
    return _open_tensorrt(cuda_graphs) if name == "tensorrt" else _open_provider(name)


def open_layer_timing(layers: LayerLog) -> Backend:
    """The backend "tensorrt" with every layer timed, which slows it down.

    Args:
        layers: Told what they take.

    Raises:
        MachineError: TensorRT or the GPU is missing or cannot be used.
    """
    return _open_tensorrt(graphs=False, layers=layers)


def _open_provider(name: str) -> Backend:
    from atp_runtime.backends import onnxruntime_gpu  # noqa: PLC0415
    from atp_runtime.backends.cuda_device import CudaDevice  # noqa: PLC0415

    cuda = name == "onnxruntime-cuda"
    provider = onnxruntime_gpu.CUDA if cuda else onnxruntime_gpu.TENSORRT
    onnxruntime_gpu.find_provider(provider)  # tells more than that there is no GPU
    return onnxruntime_gpu.OnnxRuntimeGpuBackend(CudaDevice.open(), provider)


def _open_tensorrt(graphs: bool, layers: LayerLog | None = None) -> Backend:
    from atp_runtime.backends.cuda_device import CudaDevice  # noqa: PLC0415
    from atp_runtime.backends.tensorrt import TensorRtBackend  # noqa: PLC0415
    from atp_runtime.backends.tensorrt_engine import open_tensorrt  # noqa: PLC0415

    library = open_tensorrt()
    return TensorRtBackend(CudaDevice.open(), library, graphs=graphs, layers=layers)
