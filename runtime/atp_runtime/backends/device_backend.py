"""The half of a backend that is the same for every library that runs stages on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from atp_runtime.backends.base import ArrayRows, Backend, DeviceArray, DeviceBuffer
from atp_runtime.backends.device import Device, HostMemory
from atp_runtime.backends.staging import Staging

_MOST_STAGED = 64 << 20  # bytes; the prompt of a 7B model needs 5 MB


class DeviceBackend(Backend):
    """Memory of one device; copies are enqueued on its stream, as stages are.

    Args:
        device: Where stages run.

    Attributes:
        device: The same.
    """

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self._staging = Staging(device.allocate_host)
        self._busy = False

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Reserves device memory."""
        return self.device.allocate(nbytes)

    def allocate_shared(self, nbytes: int) -> DeviceBuffer:
        """Reserves page-locked host memory, if the device can use it as its own."""
        if not self.device.integrated:
            return self.device.allocate(nbytes)
        memory = self.device.allocate_host(nbytes)
        return DeviceBuffer(memory.address, nbytes, memory)

    def copy(self, into: DeviceArray, source: DeviceArray) -> None:
        """Enqueues a copy within device memory."""
        self._busy = True
        self.device.copy(into.address, source.address, source.nbytes)

    def copy_rows(self, into: ArrayRows, source: ArrayRows) -> None:
        """Enqueues one strided copy."""
        nbytes = source.first.nbytes
        if nbytes:
            self._busy = True
            places = into.first.address, into.pitch, source.first.address, source.pitch
            self.device.copy_rows(*places, nbytes, source.count)

    def clear_rows(self, rows: ArrayRows) -> None:
        """Enqueues one strided fill."""
        if rows.first.nbytes:
            self._busy = True
            self.device.clear_rows(rows.first.address, rows.pitch, rows.first.nbytes, rows.count)

    def mark(self) -> Any:
        """Enqueues an event."""
        return self.device.record()

    def seconds(self, first: Any, last: Any) -> float:
        """Time between two events."""
        return self.device.seconds(first, last)

    def stage_started(self) -> None:
        """Counts the run, and remembers that the device has something to do."""
        super().stage_started()
        self._busy = True

    def synchronise(self) -> None:
        """Waits until everything enqueued is done.

        Raises:
            MachineError: Some of it failed.
        """
        self.device.synchronise()
        self._staging.reset()
        self._busy = False

    def _write(self, into: DeviceArray, array: npt.NDArray[Any]) -> None:
        shared = _shared(into)
        if shared is not None and not self._busy:
            shared[...] = array
            return
        if self._staging.in_use > _MOST_STAGED:
            self.traffic.synchronisations += 1
            self.synchronise()
        staged = self._staging.take(into.nbytes)
        staged.array(into.shape, into.dtype)[...] = array
        if into.nbytes:
            self.device.copy_in(into.address, staged.address, into.nbytes)

    def _read(self, arrays: Sequence[DeviceArray]) -> Sequence[npt.NDArray[Any]]:
        contents = [self._fetch(array) for array in arrays]
        self.synchronise()
        # What was staged is overwritten by later copies, so it is copied once more.
        return [host if shared else host.copy() for host, shared in contents]

    def _fetch(self, array: DeviceArray) -> tuple[npt.NDArray[Any], bool]:
        """Where the contents will be, and whether that is the array's own memory."""
        shared = _shared(array)
        if shared is not None:
            return shared, True
        staged = self._staging.take(array.nbytes)
        if array.nbytes:
            self.device.copy_out(staged.address, array.address, array.nbytes)
        return staged.array(array.shape, array.dtype), False


def _shared(array: DeviceArray) -> npt.NDArray[Any] | None:
    """The host's view of the array, if it has one."""
    memory = array.owner.memory
    if not isinstance(memory, HostMemory):
        return None
    return memory.array(array.shape, array.dtype, array.address - memory.address)
