from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.backends.host_device import HostDevice

from atp_runtime.backends.base import ALIGNMENT
from atp_runtime.backends.staging import Staging

SIZES = st.lists(st.integers(0, 2 << 20) | st.integers(0, 600), max_size=8)


@given(rounds=st.lists(SIZES, min_size=1, max_size=3))
def test_what_is_taken_does_not_overlap_before_it_is_given_back(rounds: list[list[int]]) -> None:
    staging = Staging(HostDevice().allocate_host)
    for sizes in rounds:
        taken = [staging.take(size) for size in sizes]
        assert [it.nbytes for it in taken] == sizes
        assert all(it.address % ALIGNMENT == 0 for it in taken)
        spans = sorted((it.address, it.address + it.nbytes) for it in taken if it.nbytes)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        assert staging.in_use >= sum(sizes)
        staging.reset()
        assert staging.in_use == 0


def test_same_sizes_take_no_more_memory_the_second_time() -> None:
    device = HostDevice()
    staging = Staging(device.allocate_host)
    for _ in range(3):
        for size in (100, 2 << 20, 700_000, 700_000):
            staging.take(size)
        free = device.memory().free
        staging.reset()
    first = HostDevice()
    once = Staging(first.allocate_host)
    for size in (100, 2 << 20, 700_000, 700_000):
        once.take(size)
    assert free == first.memory().free


def test_memory_that_was_taken_is_written_where_its_address_says() -> None:
    part = Staging(HostDevice().allocate_host).take(64)
    part.array((2, 4), "int64")[...] = np.arange(8).reshape(2, 4)
    assert part.content.view(np.int64).tolist() == list(range(8))
    assert part.content.ctypes.data == part.address
