"""Page-locked host memory that copies pass through, so that the host need not wait for them."""

from __future__ import annotations

from collections.abc import Callable

from atp_runtime.backends.base import ALIGNMENT
from atp_runtime.backends.device import HostMemory

_BLOCK = 1 << 20


class Staging:
    """Hands out memory that is not handed out again before `reset`.

    Its blocks are kept, as page-locking takes longer than copying; prompts, whose hidden states
    pass through it, decide how large it gets.

    Args:
        allocate: Reserves a block of that many bytes.
    """

    def __init__(self, allocate: Callable[[int], HostMemory]) -> None:
        self._allocate = allocate
        self._blocks: list[HostMemory] = []
        self.reset()

    def reset(self) -> None:
        """Takes everything back; all copies through it must be done."""
        self._number = self._offset = 0
        self.in_use = 0

    def take(self, nbytes: int) -> HostMemory:
        """`nbytes`, aligned for every dtype, with arbitrary contents.

        Raises:
            MachineError: There is not enough memory.
        """
        while self._number < len(self._blocks):
            if self._offset + nbytes <= self._blocks[self._number].nbytes:
                break
            self._number, self._offset = self._number + 1, 0
        else:
            self._blocks.append(self._allocate(max(nbytes, _BLOCK)))
        taken = self._blocks[self._number].part(self._offset, nbytes)
        rounded = -(-nbytes // ALIGNMENT) * ALIGNMENT
        self._offset += rounded
        self.in_use += rounded
        return taken
