"""Keys and values of one segment's layers, preallocated so that growing them copies nothing.

A layer's keys are [1, capacity, kv_heads, head_dim] in memory. The first P positions are
therefore one contiguous array, the segment's `past_key_values.{l}.key`, and the next ones are
where the segment's new keys belong: its output `present.{l}.key` is bound there.

Where runs are recorded, shapes and addresses must repeat. The segment is then given more than is
filled, and its new keys go through a block of their own: `padded_past` and `append`.
"""

from __future__ import annotations

from atp_runtime.backends.base import (
    ALIGNMENT,
    ArrayRows,
    Backend,
    DeviceArray,
    DeviceBuffer,
    item_size,
)
from atp_runtime.errors import InputError
from atp_runtime.manifest import Stage, TextModel
from atp_runtime.tensor_names import cache_names


class SegmentCache:
    """The caches of the layers of one segment; they always have the same length.

    Args:
        backend: Whose memory is used.
        stage: The segment.
        text: The decoder's dimensions.
        capacity: Positions there is room for, per layer.

    Raises:
        MachineError: There is not enough memory.
    """

    def __init__(self, backend: Backend, stage: Stage, text: TextModel, capacity: int) -> None:
        names = [cache_names(layer) for layer in range(*stage.layers)]
        self._past = [name for layer in names for name in layer[:2]]
        self._present = [name for layer in names for name in layer[2:]]
        self._backend = backend
        self._dtype = next(spec.dtype for spec in stage.inputs if spec.name == self._past[0])
        self._row = (text.kv_heads, text.head_dim)
        self._row_bytes = text.kv_heads * text.head_dim * item_size(self._dtype)
        self._length = 0
        self._clear_to = 0
        self._buffer = self._allocate(capacity)
        self._capacity = capacity

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self._capacity

    @property
    def length(self) -> int:
        """Positions that hold keys and values."""
        return self._length

    def past(self) -> dict[str, DeviceArray]:
        """The positions that are filled, by the names of the segment's inputs.

        Each is [1, length, kv_heads, head_dim] and stays valid, and true, while only later
        positions are written.
        """
        return self._named(self._past, self._rows(0, self._length))

    def padded_past(self, positions: int) -> dict[str, DeviceArray]:
        """The first `positions` positions, filled or not, by the names of the segment's inputs.

        Each is [1, positions, kv_heads, head_dim], and stays valid until the cache grows. See
        `clear_padding`.
        """
        return self._named(self._past, self._rows(0, positions))

    def clear_padding(self, positions: int) -> None:
        """Makes sure that of the first `positions` positions those that are not filled are zero.

        A segment hides them, but not from NaN: 0 * NaN is NaN, and an earlier conversation, or
        what the memory was used for before, may have left some.
        """
        if positions > max(self._clear_to, self._length):
            self._backend.clear_rows(self._rows(self._length, positions - self._length))
        self._clear_to = max(self._clear_to, positions)

    def slots(self, count: int) -> dict[str, DeviceArray]:
        """Where the next `count` positions go, by the names of the segment's outputs.

        Each is [1, count, kv_heads, head_dim]. The cache's length changes with `commit` only.

        Raises:
            InputError: There is not enough room.
        """
        self.check_room(count)
        self._clear_to = 0
        return self._named(self._present, self._rows(self._length, count))

    def new_block(self) -> ArrayRows:
        """Memory for one position of every layer, outside of the cache; see `append`.

        Raises:
            MachineError: There is not enough memory.
        """
        pitch = _aligned(self._row_bytes)
        block = self._backend.allocate(len(self._present) * pitch)
        return ArrayRows(block.array((1, 1, *self._row), self._dtype), pitch, len(self._present))

    def named_outputs(self, block: ArrayRows) -> dict[str, DeviceArray]:
        """The arrays of a block by the names of the segment's outputs."""
        return self._named(self._present, block)

    def append(self, block: ArrayRows) -> None:
        """Takes over the position that a segment wrote to a block.

        Raises:
            InputError: There is no room for it.
        """
        self.check_room(1)
        self._backend.copy_rows(self._rows(self._length, 1), block)
        self._length += 1

    def check_room(self, count: int) -> None:
        """Makes sure that `count` positions can be added.

        Raises:
            InputError: They cannot.
        """
        if self._length + count > self._capacity:
            raise InputError(
                f"{count} tokens do not fit: {self._length} of {self._capacity} are in use",
                why="the key/value cache holds the prompt, the images and the answer.",
                fix="shorten the prompt, use fewer images, begin a new conversation, or choose a "
                "larger context (capacity).",
            )

    def commit(self, count: int) -> None:
        """Takes the `count` positions that a segment wrote to `slots(count)` as filled."""
        if count < 0 or self._length + count > self._capacity:
            raise ValueError(f"{count} more positions than {self._length} of {self._capacity}")
        self._length += count

    def truncate(self, length: int) -> None:
        """Forgets all positions from `length` on."""
        if not 0 <= length <= self._length:
            raise ValueError(f"the cache has {self._length} positions, not {length}")
        if length < self._length:
            self._clear_to = 0
        self._length = length

    def grow(self, capacity: int) -> None:
        """Moves the cache to a larger block; arrays given out before are of the old one.

        Raises:
            MachineError: There is not enough memory.
        """
        if capacity <= self._capacity:
            return
        buffer = self._allocate(capacity)
        # Copied first and swapped then: interrupted in between, the old block still holds all.
        into = self._rows_of(buffer, capacity, 0, self._length)
        self._backend.copy_rows(into, self._rows(0, self._length))
        self._buffer, self._capacity, self._clear_to = buffer, capacity, 0

    def _rows(self, first: int, count: int) -> ArrayRows:
        return self._rows_of(self._buffer, self._capacity, first, count)

    def _rows_of(self, buffer: DeviceBuffer, capacity: int, first: int, count: int) -> ArrayRows:
        """Positions `first` to `first + count` of every layer's keys and values."""
        array = buffer.array((1, count, *self._row), self._dtype, first * self._row_bytes)
        return ArrayRows(array, self._pitch(capacity), len(self._past))

    def _pitch(self, capacity: int) -> int:
        return _aligned(capacity * self._row_bytes)

    def _allocate(self, capacity: int) -> DeviceBuffer:
        return self._backend.allocate(len(self._past) * self._pitch(capacity))

    @staticmethod
    def _named(names: list[str], rows: ArrayRows) -> dict[str, DeviceArray]:
        return dict(zip(names, rows.arrays(), strict=True))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
