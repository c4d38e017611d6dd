from collections.abc import Callable

import numpy as np
import pytest
from tests.runtime.backends.host_device import AWAITED, HostDevice
from tests.runtime.backends.host_engines import HostLibrary

from atp_runtime.backends import device_backend
from atp_runtime.backends.base import DeviceArray
from atp_runtime.backends.tensorrt import TensorRtBackend

ONES, TWOS = np.ones(3, dtype=np.float32), np.full(3, 2, dtype=np.float32)


def on(device: HostDevice) -> TensorRtBackend:
    return TensorRtBackend(device, HostLibrary())


def test_host_device_does_nothing_before_it_is_synchronised() -> None:
    device = HostDevice()
    host, block = device.allocate_host(8), device.allocate(8)
    host.content[:] = 1
    device.copy_in(block.address, host.address, 8)
    back = device.allocate_host(8)
    device.copy_out(back.address, block.address, 8)
    host.content[:] = 2
    assert set(back.content) == {AWAITED}
    device.synchronise()
    assert set(back.content) == {2}


def test_host_device_does_what_was_enqueued_before_it_frees_memory() -> None:
    device = HostDevice()
    source, into = device.allocate(8), device.allocate(8)
    device.copy(into.address, source.address, 8)
    del source
    assert device.counts["free"] == 1
    del into
    assert device.memory().free == device.memory().total


def test_host_goes_on_while_copies_are_under_way() -> None:
    device = HostDevice()
    backend = on(device)
    array = np.arange(1000, dtype=np.float32)
    uploaded = [backend.upload(array + number) for number in range(3)]
    array[:] = -1
    assert device.counts["synchronise"] == 0
    back = backend.download_all(*uploaded)
    assert [it[0] for it in back] == [0, 1, 2]
    assert device.counts["synchronise"] == 1


def test_what_was_downloaded_stays_when_more_is_downloaded() -> None:
    backend = on(HostDevice())
    first = backend.download(backend.upload(ONES))
    backend.download(backend.upload(TWOS))
    assert first.tolist() == [1, 1, 1]


def test_host_waits_when_too_much_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_backend, "_MOST_STAGED", 3000)
    device = HostDevice()
    backend = on(device)
    into = [backend.allocate(1024).array((256,), "float32") for _ in range(5)]
    for number, array in enumerate(into):
        backend.write(array, np.full(256, number, dtype=np.float32))
    assert device.counts["synchronise"] == backend.traffic.synchronisations == 1
    assert [it[0] for it in backend.download_all(*into)] == [0, 1, 2, 3, 4]


def shared(backend: TensorRtBackend) -> DeviceArray:
    return backend.allocate_shared(12).array((3,), "float32")


def copies(device: HostDevice) -> tuple[int, int]:
    return device.counts["copy_in"], device.counts["copy_out"]


def test_shared_memory_is_written_and_read_without_a_copy() -> None:
    device = HostDevice(integrated=True)
    backend = on(device)
    array = shared(backend)
    backend.write(array, ONES)
    assert backend.download(array).tolist() == [1, 1, 1]
    assert copies(device) == (0, 0)


def test_shared_memory_is_copied_to_when_the_device_may_still_read_it() -> None:
    device = HostDevice(integrated=True)
    backend = on(device)
    array, before = shared(backend), shared(backend)
    backend.write(array, ONES)
    backend.copy(before, array)
    backend.write(array, TWOS)
    assert copies(device) == (1, 0)
    assert [it.tolist() for it in backend.download_all(before, array)] == [[1] * 3, [2] * 3]


def test_memory_is_not_shared_when_the_device_has_its_own() -> None:
    device = HostDevice()
    backend = on(device)
    array = shared(backend)
    backend.write(array, ONES)
    assert backend.download(array).tolist() == [1, 1, 1]
    assert copies(device) == (1, 1)


@pytest.mark.parametrize("integrated", [False, True])
def test_empty_arrays_are_copied_without_asking_the_device(integrated: bool) -> None:
    device = HostDevice(integrated=integrated)
    backend = on(device)
    allocators: list[Callable[[int], object]] = [backend.allocate, backend.allocate_shared]
    for allocate in allocators:
        array = allocate(0).array((1, 0, 4), "float16")
        backend.write(array, np.empty((1, 0, 4), dtype=np.float16))
        assert backend.download(array).shape == (1, 0, 4)
    assert copies(device) == (0, 0)
