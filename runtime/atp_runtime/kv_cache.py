"""Keys and values of one segment's layers, preallocated so that growing them copies nothing.

A layer's keys are [1, capacity, kv_heads, head_dim] in memory. The first P positions are
therefore one contiguous array, the segment's `past_key_values.{l}.key`, and the next ones are
where the segment's new keys belong: its output `present.{l}.key` is bound there.
"""

from __future__ import annotations

from dataclasses import dataclass

from atp_runtime.backends.base import ALIGNMENT, Backend, DeviceArray, DeviceBuffer, item_size
from atp_runtime.errors import InputError
from atp_runtime.manifest import Stage, TextModel, cache_names


@dataclass(frozen=True)
class _Region:
    """Where one layer's keys, or its values, are and what the graph calls them."""

    past: str
    present: str
    offset: int


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
        pairs = [
            pair
            for key, value, new_key, new_value in names
            for pair in ((key, new_key), (value, new_value))
        ]
        self._backend = backend
        self._names = pairs
        self._dtype = next(spec.dtype for spec in stage.inputs if spec.name == pairs[0][0])
        self._row = (text.kv_heads, text.head_dim)
        self._row_bytes = text.kv_heads * text.head_dim * item_size(self._dtype)
        self._length = 0
        self._buffer, self._regions = self._allocate(capacity)
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
        return self._filled(self._buffer, self._regions)

    def _filled(self, buffer: DeviceBuffer, regions: tuple[_Region, ...]) -> dict[str, DeviceArray]:
        shape, dtype = (1, self._length, *self._row), self._dtype
        return {
            region.past: DeviceArray(buffer.address + region.offset, shape, dtype, buffer)
            for region in regions
        }

    def slots(self, count: int) -> dict[str, DeviceArray]:
        """Where the next `count` positions go, by the names of the segment's outputs.

        Each is [1, count, kv_heads, head_dim]. The cache's length changes with `commit` only.

        Raises:
            InputError: There is not enough room.
        """
        self.check_room(count)
        shape = (1, count, *self._row)
        buffer, dtype = self._buffer, self._dtype
        start = buffer.address + self._length * self._row_bytes
        return {
            region.present: DeviceArray(start + region.offset, shape, dtype, buffer)
            for region in self._regions
        }

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
        self._length = length

    def grow(self, capacity: int) -> None:
        """Moves the cache to a larger block; arrays given out before are of the old one.

        Raises:
            MachineError: There is not enough memory.
        """
        if capacity <= self._capacity:
            return
        buffer, regions = self._allocate(capacity)
        # Copied first and swapped then: interrupted in between, the old block still holds all.
        into = self._filled(buffer, regions)
        for name, old in self.past().items():
            self._backend.copy(into[name], old)
        self._buffer, self._regions, self._capacity = buffer, regions, capacity

    def _allocate(self, capacity: int) -> tuple[DeviceBuffer, tuple[_Region, ...]]:
        region_bytes = -(-capacity * self._row_bytes // ALIGNMENT) * ALIGNMENT
        regions = (
            _Region(past, present, number * region_bytes)
            for number, (past, present) in enumerate(self._names)
        )
        buffer = self._backend.allocate(len(self._names) * region_bytes)
        return buffer, tuple(regions)
