"""A GPU made of host memory, as late with everything as a GPU may be."""

import ctypes
import weakref
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np

from atp_runtime.backends.base import ALIGNMENT, DeviceBuffer
from atp_runtime.backends.device import Device, DeviceGraph, HostMemory, MemoryState
from atp_runtime.errors import MachineError

FRESH, AWAITED = 0xFF, 0xEE  # of bytes 0xFF, floats of any width are NaN

Work = Callable[[], object]


class HostDevice(Device):
    """Does what was enqueued when it is synchronised, or memory is freed, and not before.

    New memory is full of garbage, and so is the host's side of a copy that has not happened yet.

    Args:
        integrated: Whether it says that it shares the host's memory.
        late: Whether it waits with the work; else that is done at once.
        capacity: Bytes it has.

    Attributes:
        counts: Of "copy_in", "copy_out", "copy", "copy_rows", "clear_rows", "synchronise",
            "capture", "launch", and "free" for the times that work had to be done because memory
            was freed.
        recording: What is being captured, in place of being done.
        no_graphs: Whether nothing can be captured.
    """

    def __init__(
        self, *, integrated: bool = False, late: bool = True, capacity: int = 1 << 30
    ) -> None:
        self.name, self.sm, self.stream = "Host", 87, 7
        self.integrated = integrated
        self.counts: Counter[str] = Counter()
        self._late = late
        self._capacity = capacity
        self._allocated = 0
        self._work: deque[Work] = deque()
        self.recording: list[Work] | None = None
        self.no_graphs = False

    def enqueue(self, work: Work) -> None:
        if self.recording is not None:
            self.recording.append(work)
            return
        self._work.append(work)
        if not self._late:
            self._drain()

    def memory(self) -> MemoryState:
        return MemoryState(self._capacity - self._allocated, self._capacity)

    def allocate(self, nbytes: int) -> DeviceBuffer:
        address, content = self._block(nbytes)
        return DeviceBuffer(address, nbytes, [content])

    def allocate_host(self, nbytes: int) -> HostMemory:
        return HostMemory(*self._block(nbytes))

    def _block(self, nbytes: int) -> tuple[int, np.ndarray]:
        assert self.recording is None, "a capture must not allocate"
        if self._allocated + nbytes > self._capacity:
            raise MachineError(f"{nbytes} bytes of GPU memory", why="it is small.", fix="wait.")
        self._allocated += nbytes
        raw = np.full(nbytes + ALIGNMENT, FRESH, dtype=np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        pages = (ctypes.c_uint8 * max(nbytes, 1)).from_buffer(raw, start)
        weakref.finalize(pages, self._free, raw, nbytes)
        return raw.ctypes.data + start, np.frombuffer(pages, dtype=np.uint8)[:nbytes]

    def _free(self, _raw: np.ndarray, nbytes: int) -> None:
        self._allocated -= nbytes
        if self._work:
            self.counts["free"] += 1
            self._drain()

    def copy_in(self, into: int, host: int, nbytes: int) -> None:
        self.counts["copy_in"] += 1
        self._copy(into, host, nbytes)

    def copy_out(self, host: int, source: int, nbytes: int) -> None:
        self.counts["copy_out"] += 1
        ctypes.memset(host, AWAITED, nbytes)
        self._copy(host, source, nbytes)

    def copy(self, into: int, source: int, nbytes: int) -> None:
        self.counts["copy"] += 1
        self._copy(into, source, nbytes)

    def _copy(self, into: int, source: int, nbytes: int) -> None:
        assert into
        assert source
        self.enqueue(lambda: ctypes.memmove(into, source, nbytes))

    def copy_rows(
        self, into: int, into_pitch: int, source: int, source_pitch: int, nbytes: int, count: int
    ) -> None:
        self.counts["copy_rows"] += 1
        assert min(into_pitch, source_pitch) >= nbytes > 0
        for row in range(count):
            self._copy(into + row * into_pitch, source + row * source_pitch, nbytes)

    def clear_rows(self, first: int, pitch: int, nbytes: int, count: int) -> None:
        self.counts["clear_rows"] += 1
        assert pitch >= nbytes > 0
        for row in range(count):
            self.enqueue(partial(ctypes.memset, first + row * pitch, 0, nbytes))

    def capture(self, work: Callable[[], None]) -> "HostGraph":
        assert self.recording is None
        self.counts["capture"] += 1
        self.recording = []
        try:
            work()
            if self.no_graphs:
                raise MachineError("no graphs", why="it is old.", fix="wait.")
            return HostGraph(self, self.recording)
        finally:
            self.recording = None

    def synchronise(self) -> None:
        assert self.recording is None, "a capture must not wait"
        self.counts["synchronise"] += 1
        self._drain()

    def record(self) -> list[float]:
        moments: list[float] = []
        self.enqueue(lambda: moments.append(perf_counter()))
        return moments

    def seconds(self, first: list[float], last: list[float]) -> float:
        if not last:
            self.synchronise()
        return last[0] - first[0]

    def _drain(self) -> None:
        while self._work:
            self._work.popleft()()


class HostGraph(DeviceGraph):
    """Does again what was enqueued, on the addresses of then."""

    def __init__(self, device: HostDevice, work: list[Work]) -> None:
        self._device = device
        self._work = work

    def launch(self) -> None:
        self._device.counts["launch"] += 1
        for work in self._work:
            self._device.enqueue(work)
