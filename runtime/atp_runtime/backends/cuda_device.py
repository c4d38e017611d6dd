"""An NVIDIA GPU, by the CUDA runtime library.

Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_size_t, c_void_p

import numpy as np

from atp_runtime.backends.base import DeviceBuffer
from atp_runtime.backends.cudart import Cudart, OutOfDeviceMemoryError, load_cudart
from atp_runtime.backends.device import Device, DeviceGraph, HostMemory, MemoryState
from atp_runtime.errors import MachineError

_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18  # cudaDevAttr...
_BY_ADDRESS = 4  # cudaMemcpyDefault: host memory that the device shares is both
_MAPPED = 2  # cudaHostAllocMapped: the device can use the memory, too
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no waiting for the legacy default stream
_THIS_THREAD = 1  # cudaStreamCaptureModeThreadLocal: other threads may do as they like
_PROPERTIES_BYTES = 8192  # more than any version's struct, which begins with the name


class CudaDevice(Device):
    """The first GPU that CUDA lists; `CUDA_VISIBLE_DEVICES` chooses among several.

    Args:
        cuda: The CUDA runtime.

    Raises:
        MachineError: There is no GPU, or it cannot be used.
    """

    def __init__(self, cuda: Cudart) -> None:
        cuda.check_gpu()
        self._cuda = cuda
        cuda.call("cudaSetDevice", 0)
        stream = c_void_p()
        cuda.call("cudaStreamCreateWithFlags", byref(stream), _NON_BLOCKING)
        self.stream = stream.value or 0
        self.name = self._name()
        self.sm = 10 * self._attribute(_MAJOR) + self._attribute(_MINOR)
        self.integrated = bool(self._attribute(_INTEGRATED))
        self._events: list[c_void_p] = []

    @classmethod
    def open(cls) -> CudaDevice:
        """Loads the CUDA runtime, then as above."""
        return cls(load_cudart())

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._cuda.call("cudaDeviceGetAttribute", byref(value), number, 0)
        return value.value

    def _name(self) -> str:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._cuda.call("cudaGetDeviceProperties", properties, 0)
        return properties.value.decode(errors="replace")

    def memory(self) -> MemoryState:
        """What CUDA says."""
        free, total = c_size_t(), c_size_t()
        self._cuda.call("cudaMemGetInfo", byref(free), byref(total))
        return MemoryState(free.value, total.value)

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Reserves device memory, which CUDA aligns to 256 bytes at least."""
        block = self._reserve("cudaMalloc", nbytes)
        return DeviceBuffer(block.value or 0, nbytes, _Owned(self._cuda, "cudaFree", block))

    def allocate_host(self, nbytes: int) -> HostMemory:
        """Reserves whole pages."""
        block = self._reserve("cudaHostAlloc", nbytes, _MAPPED)
        pages = (ctypes.c_uint8 * max(nbytes, 1)).from_address(block.value or 0)
        weakref.finalize(pages, self._free_host, self._cuda, self.stream, block)
        return HostMemory(
            block.value or 0, np.frombuffer(memoryview(pages), dtype=np.uint8)[:nbytes]
        )

    @staticmethod
    def _free_host(cuda: Cudart, stream: int, block: c_void_p) -> None:
        cuda.function("cudaStreamSynchronize")(stream)  # cudaFree waits by itself, this may not
        cuda.function("cudaFreeHost")(block)

    def _reserve(self, function: str, nbytes: int, *flags: int) -> c_void_p:
        block = c_void_p()
        try:
            # Of no bytes CUDA gives no address, but arrays of no elements need one, too.
            self._cuda.call(function, byref(block), max(nbytes, 1), *flags)
        except OutOfDeviceMemoryError as error:
            left = self.memory()
            raise MachineError(
                f"{nbytes / 1e6:,.1f} MB of GPU memory are not to be had: "
                f"{left.free / 1e6:,.1f} of {left.total / 1e6:,.1f} MB are free",
                why="caches, hidden states and the engines' scratch memory need them.",
                fix="close other programs, choose a smaller context, or build engines for shorter "
                "sequences: atp-export engines BUNDLE --max-tokens N.",
            ) from error
        return block

    def copy_in(self, into: int, host: int, nbytes: int) -> None:
        """Enqueues a copy from the host."""
        self.copy(into, host, nbytes)

    def copy_out(self, host: int, source: int, nbytes: int) -> None:
        """Enqueues a copy to the host."""
        self.copy(host, source, nbytes)

    def copy(self, into: int, source: int, nbytes: int) -> None:
        """Enqueues a copy."""
        self._cuda.call("cudaMemcpyAsync", into, source, nbytes, _BY_ADDRESS, self.stream)

    def copy_rows(
        self, into: int, into_pitch: int, source: int, source_pitch: int, nbytes: int, count: int
    ) -> None:
        """Enqueues one two-dimensional copy."""
        places = into, into_pitch, source, source_pitch
        self._cuda.call("cudaMemcpy2DAsync", *places, nbytes, count, _BY_ADDRESS, self.stream)

    def clear_rows(self, first: int, pitch: int, nbytes: int, count: int) -> None:
        """Enqueues one two-dimensional fill."""
        self._cuda.call("cudaMemset2DAsync", first, pitch, 0, nbytes, count, self.stream)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Records by CUDA's stream capture."""
        recorded = c_void_p()
        self._cuda.call("cudaStreamBeginCapture", self.stream, _THIS_THREAD)
        try:
            work()
        except BaseException:
            # The stream must leave capturing; that the recording is void is known already.
            self._cuda.function("cudaStreamEndCapture")(self.stream, byref(recorded))
            self._cuda.function("cudaGetLastError")()
            self._destroy_graph(recorded)
            raise
        self._cuda.call("cudaStreamEndCapture", self.stream, byref(recorded))
        try:
            return CudaGraph(self._cuda, recorded, self.stream)
        finally:
            self._destroy_graph(recorded)

    def _destroy_graph(self, recorded: c_void_p) -> None:
        if recorded:
            self._cuda.function("cudaGraphDestroy")(recorded)

    def synchronise(self) -> None:
        """Waits for the stream."""
        self._cuda.call("cudaStreamSynchronize", self.stream)

    def record(self) -> _Event:
        """Records one of the events that are left over, or a new one."""
        event = _Event(self._events, self._events.pop() if self._events else self._new_event())
        self._cuda.call("cudaEventRecord", event.handle, self.stream)
        return event

    def _new_event(self) -> c_void_p:
        handle = c_void_p()
        self._cuda.call("cudaEventCreate", byref(handle))
        return handle

    def seconds(self, first: _Event, last: _Event) -> float:
        """The time between two events, to about half a microsecond."""
        milliseconds = c_float()
        self._cuda.call("cudaEventSynchronize", last.handle)
        self._cuda.call("cudaEventElapsedTime", byref(milliseconds), first.handle, last.handle)
        return milliseconds.value / 1e3


class CudaGraph(DeviceGraph):
    """A CUDA graph, ready to be launched; destroyed when nothing refers to it any more.

    Args:
        cuda: The CUDA runtime.
        recorded: What was captured; needed here only.
        stream: Where it is launched.
    """

    def __init__(self, cuda: Cudart, recorded: c_void_p, stream: int) -> None:
        self._cuda = cuda
        self._stream = stream
        self._executable = c_void_p()
        cuda.call("cudaGraphInstantiateWithFlags", byref(self._executable), recorded, 0)
        weakref.finalize(self, cuda.function("cudaGraphExecDestroy"), self._executable)

    def launch(self) -> None:
        """Enqueues it."""
        self._cuda.call("cudaGraphLaunch", self._executable, self._stream)


class _Owned:
    """A block that is freed when nothing refers to it any more.

    That the free fails means that the device has failed, which the next call will tell.
    """

    def __init__(self, cuda: Cudart, free: str, block: c_void_p) -> None:
        weakref.finalize(self, cuda.function(free), block)


class _Event:
    """A CUDA event that goes back to the others when nobody asks for it any more."""

    def __init__(self, left_over: list[c_void_p], handle: c_void_p) -> None:
        self._left_over = left_over
        self.handle = handle

    def __del__(self) -> None:
        self._left_over.append(self.handle)
