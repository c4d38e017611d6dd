"""What backends need of a GPU: memory, and one stream on which all its work happens in order.

A GPU goes on by itself: copies and stages are enqueued, and done some time before `synchronise`
returns. A block of memory is freed with its last reference, which waits for what is enqueued, so
nothing can be freed too early; but it costs time, so a decode step allocates nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.backends.base import DeviceBuffer, item_size


@dataclass(frozen=True, eq=False)
class HostMemory:
    """Host memory that the device copies from and to while the host goes on (page-locked).

    Attributes:
        address: Of its first byte. A device that shares the host's memory can use it as its own.
        content: uint8 [nbytes]; keeps it alive.
    """

    address: int
    content: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.content.size

    def part(self, offset: int, nbytes: int) -> HostMemory:
        """`nbytes` of it, from `offset` on."""
        return HostMemory(self.address + offset, self.content[offset : offset + nbytes])

    def array(self, shape: tuple[int, ...], dtype: str, offset: int = 0) -> npt.NDArray[Any]:
        """A view of it, `offset` bytes from its beginning."""
        nbytes = math.prod(shape) * item_size(dtype)
        flat: npt.NDArray[Any] = self.content[offset : offset + nbytes].view(dtype)
        return flat.reshape(shape)


@dataclass(frozen=True)
class MemoryState:
    """A device's memory in bytes; where host and device share it, that of the machine."""

    free: int
    total: int


class DeviceGraph(ABC):
    """Work that was recorded, to be enqueued again and again as one thing."""

    @abstractmethod
    def launch(self) -> None:
        """Enqueues it; it reads and writes the addresses that were given when it was recorded.

        Raises:
            MachineError: It cannot be launched.
        """


class Device(ABC):
    """One GPU and one stream on it.

    Attributes:
        name: The GPU's.
        sm: Compute capability, major * 10 + minor: 87 on Orin.
        integrated: Whether host and device share memory.
        stream: The handle that libraries which enqueue work by themselves are given.
    """

    name: str
    sm: int
    integrated: bool
    stream: int

    @abstractmethod
    def memory(self) -> MemoryState:
        """How much there is, and how much is free."""

    @abstractmethod
    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Reserves device memory; its contents are arbitrary.

        Raises:
            MachineError: There is not enough.
        """

    @abstractmethod
    def allocate_host(self, nbytes: int) -> HostMemory:
        """Reserves page-locked host memory, aligned like the device's.

        Raises:
            MachineError: There is not enough.
        """

    @abstractmethod
    def copy_in(self, into: int, host: int, nbytes: int) -> None:
        """Enqueues a copy from page-locked host memory to the device, by addresses."""

    @abstractmethod
    def copy_out(self, host: int, source: int, nbytes: int) -> None:
        """Enqueues a copy from the device to page-locked host memory, by addresses."""

    @abstractmethod
    def copy(self, into: int, source: int, nbytes: int) -> None:
        """Enqueues a copy within the device, by addresses."""

    @abstractmethod
    def copy_rows(
        self, into: int, into_pitch: int, source: int, source_pitch: int, nbytes: int, count: int
    ) -> None:
        """Enqueues `count` copies of `nbytes` each within the device, places a pitch apart."""

    @abstractmethod
    def clear_rows(self, first: int, pitch: int, nbytes: int, count: int) -> None:
        """Enqueues that `count` times `nbytes` become zero, places a pitch apart."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> DeviceGraph:
        """Records what `work` enqueues on the stream, which does not happen yet.

        Args:
            work: Enqueues only: it neither waits nor allocates.

        Raises:
            MachineError: It cannot be recorded. Like an error of `work` itself, which is passed
                on, this leaves the stream as it was.
        """

    @abstractmethod
    def synchronise(self) -> None:
        """Waits until everything enqueued is done.

        Raises:
            MachineError: Some of it failed.
        """

    @abstractmethod
    def record(self) -> Any:
        """Enqueues an event that notes when the device gets there."""

    @abstractmethod
    def seconds(self, first: Any, last: Any) -> float:
        """Time between two events, in seconds; waits for the last one."""
