from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atp_runtime.backends import Backend, open_backend
from atp_runtime.errors import InputError
from atp_runtime.kv_cache import SegmentCache
from atp_runtime.manifest import Stage, TensorSpec, TextModel, read_manifest
from atp_runtime.tensor_names import cache_names

KV_HEADS, HEAD_DIM = 3, 5
TEXT = TextModel(9, 30, 6, KV_HEADS, HEAD_DIM, 1, 1, 1)
LAYERS = (4, 6)
PAST = [name for layer in range(*LAYERS) for name in cache_names(layer)[:2]]
PRESENT = [name for layer in range(*LAYERS) for name in cache_names(layer)[2:]]
ROOM = 12


def segment(dtype: str) -> Stage:
    shape = (1, "past", KV_HEADS, HEAD_DIM)
    inputs = tuple(TensorSpec(name, dtype, shape) for name in PAST)
    return Stage("segment_1", "segment", "onnx/segment_1.onnx", (), inputs, (), LAYERS)


def cache(backend: Backend, capacity: int = ROOM, dtype: str = "float32") -> SegmentCache:
    return SegmentCache(backend, segment(dtype), TEXT, capacity)


def append(backend: Backend, filled: SegmentCache, count: int, first: float) -> list[np.ndarray]:
    """Writes positions as a segment would; returns what was written, one array per name."""
    written = []
    for number, slot in enumerate(filled.slots(count).values()):
        size = count * KV_HEADS * HEAD_DIM
        values = (first + 1000 * number + np.arange(size)).astype(slot.dtype).reshape(slot.shape)
        backend.write(slot, values)
        written.append(values)
    filled.commit(count)
    return written


def test_past_and_slots_have_the_graphs_names_and_shapes() -> None:
    filled = cache(open_backend())
    assert list(filled.past()) == PAST
    assert list(filled.slots(2)) == PRESENT
    assert {array.shape for array in filled.past().values()} == {(1, 0, KV_HEADS, HEAD_DIM)}
    assert {array.shape for array in filled.slots(2).values()} == {(1, 2, KV_HEADS, HEAD_DIM)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_new_positions_follow_the_past_in_memory(dtype: str) -> None:
    backend = open_backend()
    filled = cache(backend, dtype=dtype)
    append(backend, filled, 2, first=0)
    for past, slot in zip(filled.past().values(), filled.slots(1).values(), strict=True):
        assert slot.address == past.address + past.nbytes
        assert slot.dtype == past.dtype == dtype


def test_cache_of_a_bundle_takes_names_from_its_segment(hand_made: Path) -> None:
    manifest = read_manifest(hand_made)
    middle = manifest.segments[1]
    filled = SegmentCache(open_backend(), middle, manifest.text, ROOM)
    inputs = [spec.name for spec in middle.inputs if spec.name.startswith("past_key_values.")]
    assert sorted(filled.past()) == sorted(inputs)


def test_slots_say_tokens_and_capacity_when_there_is_no_room() -> None:
    backend = open_backend()
    filled = cache(backend)
    append(backend, filled, 10, first=0)
    with pytest.raises(InputError, match="3 tokens do not fit: 10 of 12") as raised:
        filled.slots(3)
    assert "capacity" in raised.value.fix


def test_cache_without_room_has_addresses_all_the_same() -> None:
    filled = cache(open_backend(), capacity=0)
    assert all(array.address > 0 for array in filled.past().values())


def test_commit_raises_when_the_positions_do_not_exist() -> None:
    filled = cache(open_backend())
    with pytest.raises(ValueError, match="13 more positions"):
        filled.commit(13)


@pytest.mark.parametrize("length", [-1, 3])
def test_truncate_raises_when_the_length_is_not_in_the_past(length: int) -> None:
    backend = open_backend()
    filled = cache(backend)
    append(backend, filled, 2, first=0)
    with pytest.raises(ValueError, match="2 positions"):
        filled.truncate(length)


def test_grow_does_nothing_when_there_is_room_already() -> None:
    filled = cache(open_backend())
    before = [array.address for array in filled.slots(1).values()]
    filled.grow(ROOM - 1)
    assert filled.capacity == ROOM
    assert [array.address for array in filled.slots(1).values()] == before


class CacheAgainstLists(RuleBasedStateMachine):
    """A cache behaves as lists of positions, one per layer's keys or values."""

    @initialize(dtype=st.sampled_from(["float32", "float16"]), capacity=st.integers(0, ROOM))
    def begin(self, dtype: str, capacity: int) -> None:
        self.backend = open_backend()
        self.cache = cache(self.backend, capacity, dtype)
        self.model: list[list[np.ndarray]] = [[] for _ in PAST]
        self.written = 0.0
        self.address = self.first_address()

    def first_address(self) -> int:
        return next(iter(self.cache.past().values())).address

    @rule(count=st.integers(0, 5))
    def append(self, count: int) -> None:
        if self.cache.length + count > self.cache.capacity:
            with pytest.raises(InputError):
                self.cache.slots(count)
            return
        values = append(self.backend, self.cache, count, self.written)
        self.written += 100
        for rows, new in zip(self.model, values, strict=True):
            rows.extend(new[0])

    @rule(count=st.integers(1, 3))
    def write_without_commit(self, count: int) -> None:
        if self.cache.length + count <= self.cache.capacity:
            for slot in self.cache.slots(count).values():
                self.backend.write(slot, np.full(slot.shape, -1, dtype=slot.dtype))

    @precondition(lambda self: self.cache.length > 0)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, self.cache.length))
        self.cache.truncate(length)
        self.model = [rows[:length] for rows in self.model]

    @rule(more=st.integers(1, 4))
    def grow(self, more: int) -> None:
        self.cache.grow(self.cache.capacity + more)
        self.address = self.first_address()

    @invariant()
    def past_is_what_was_appended(self) -> None:
        assert self.cache.length == len(self.model[0])
        for array, rows in zip(self.cache.past().values(), self.model, strict=True):
            expected = np.array(rows).reshape(array.shape)
            np.testing.assert_array_equal(self.backend.download(array), expected)

    @invariant()
    def memory_stays_where_it_is_unless_grown(self) -> None:
        assert self.first_address() == self.address


TestCacheAgainstLists = CacheAgainstLists.TestCase
TestCacheAgainstLists.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
