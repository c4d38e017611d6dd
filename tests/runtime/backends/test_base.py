from collections.abc import Callable

import numpy as np
import pytest
from tests.runtime.backends.host_engines import host_backend

from atp_runtime.backends import open_backend
from atp_runtime.backends.base import (
    ALIGNMENT,
    ArrayRows,
    Backend,
    DeviceBuffer,
    item_size,
)
from atp_runtime.errors import InputError, MachineError

ALL: dict[str, Callable[[], Backend]] = {
    "onnxruntime": lambda: open_backend(threads=1),
    "tensorrt": host_backend,
    "tensorrt, shared memory": lambda: host_backend(integrated=True),
}


@pytest.fixture(params=ALL)
def backend(request: pytest.FixtureRequest) -> Backend:
    return ALL[request.param]()


def test_open_backend_wants_no_threads_for_a_gpu() -> None:
    with pytest.raises(InputError, match="threads: 2") as raised:
        open_backend("tensorrt", threads=2)
    assert "tensorrt runs on the GPU" in raised.value.why


def test_open_backend_names_what_there_is_when_the_name_is_unknown() -> None:
    with pytest.raises(InputError, match="no backend 'cuda'") as raised:
        open_backend("cuda")
    assert "onnxruntime" in raised.value.why


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("int64", 8)])
def test_item_size_is_that_of_numpy(dtype: str, size: int) -> None:
    assert item_size(dtype) == size == np.dtype(dtype).itemsize


def test_item_size_raises_when_stages_do_not_use_the_dtype() -> None:
    with pytest.raises(ValueError, match="float64"):
        item_size("float64")


def test_array_lies_at_its_offset_in_the_buffer() -> None:
    buffer = DeviceBuffer(address=4096, nbytes=64, memory=None)
    array = buffer.array((2, 3), "float16", offset=10)
    assert (array.address, array.nbytes, array.owner) == (4106, 12, buffer)


@pytest.mark.parametrize(
    ("shape", "dtype", "offset"), [((9,), "int64", 0), ((1,), "float32", 61), ((1,), "int64", -8)]
)
def test_array_raises_when_it_would_leave_the_buffer(
    shape: tuple[int, ...], dtype: str, offset: int
) -> None:
    with pytest.raises(ValueError, match="outside of 64 bytes"):
        DeviceBuffer(address=4096, nbytes=64, memory=None).array(shape, dtype, offset)


def test_array_may_be_empty_at_the_very_end() -> None:
    assert DeviceBuffer(4096, 64, None).array((1, 0, 4), "float32", offset=64).nbytes == 0


@pytest.mark.parametrize("nbytes", [0, 1, 1000])
def test_allocate_gives_aligned_memory_that_is_never_null(backend: Backend, nbytes: int) -> None:
    for buffer in (backend.allocate(nbytes), backend.allocate_shared(nbytes)):
        assert buffer.nbytes == nbytes
        assert buffer.address > 0
        assert buffer.address % ALIGNMENT == 0


def test_allocate_raises_when_the_machine_has_not_that_much(backend: Backend) -> None:
    for allocate in (backend.allocate, backend.allocate_shared):
        with pytest.raises(MachineError, match="memory"):
            allocate(1 << 60)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_download_returns_what_was_uploaded(backend: Backend, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    back = backend.download(backend.upload(array))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, array)


def test_upload_takes_arrays_that_are_not_contiguous(backend: Backend) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(backend.download(backend.upload(array)), array)


def test_upload_is_a_copy(backend: Backend) -> None:
    array = np.zeros(3, dtype=np.float32)
    on_device = backend.upload(array)
    array[:] = 1
    assert backend.download(on_device).tolist() == [0, 0, 0]


def test_download_is_a_read_only_view_on_the_cpu() -> None:
    backend = open_backend(threads=1)
    on_device = backend.upload(np.zeros(3, dtype=np.float32))
    view = backend.download(on_device)
    backend.write(on_device, np.ones(3, dtype=np.float32))
    assert view.tolist() == [1, 1, 1]
    assert not view.flags.writeable


def test_download_all_gives_each_array_and_waits_once(backend: Backend) -> None:
    arrays = [np.arange(3.0, dtype=np.float32), np.arange(4), np.empty((2, 0), np.float16)]
    back = backend.download_all(*map(backend.upload, arrays))
    for found, wanted in zip(back, arrays, strict=True):
        np.testing.assert_array_equal(found, wanted, strict=True)
        assert not found.flags.writeable
    assert backend.traffic.synchronisations == 1


def test_write_changes_only_its_part_of_a_buffer(backend: Backend) -> None:
    buffer = backend.allocate(16)
    backend.write(buffer.array((4,), "float32"), np.zeros(4, dtype=np.float32))
    backend.write(buffer.array((2,), "float32", offset=4), np.array([5, 6], dtype=np.float32))
    assert backend.download(buffer.array((4,), "float32")).tolist() == [0, 5, 6, 0]


@pytest.mark.parametrize(
    "array", [np.zeros(4, np.float32), np.zeros((1, 3), np.float32), np.zeros(3, np.float16)]
)
def test_write_raises_when_shape_or_dtype_differ(backend: Backend, array: np.ndarray) -> None:
    into = backend.upload(np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match="cannot write"):
        backend.write(into, array)


def test_copy_stays_on_the_device(backend: Backend) -> None:
    source = backend.upload(np.arange(3, dtype=np.float32))
    into = backend.allocate(12).array((3,), "float32")
    before = backend.traffic.host_to_device_bytes
    backend.copy(into, source)
    assert backend.traffic.host_to_device_bytes == before
    assert backend.traffic.device_to_host_bytes == 0
    assert backend.download(into).tolist() == [0, 1, 2]


def rows_of(block: DeviceBuffer, pitch: int, offset: int = 0) -> ArrayRows:
    return ArrayRows(block.array((2,), "float32", offset), pitch, 3)


def test_rows_are_copied_to_rows_that_lie_further_apart(backend: Backend) -> None:
    source = backend.upload(np.arange(6, dtype=np.float32))
    into = backend.upload(np.full(12, -1, dtype=np.float32))
    backend.copy_rows(rows_of(into.owner, 16, 4), rows_of(source.owner, 8))
    assert backend.download(into).tolist() == [-1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1]


def test_rows_are_cleared_and_nothing_between_them(backend: Backend) -> None:
    into = backend.upload(np.full(12, np.nan, dtype=np.float32))
    backend.clear_rows(rows_of(into.owner, 16, 4))
    assert np.flatnonzero(backend.download(into) == 0).tolist() == [1, 2, 5, 6, 9, 10]


def test_rows_without_elements_are_copied_and_cleared(backend: Backend) -> None:
    empty = ArrayRows(backend.allocate(0).array((0,), "float32"), 256, 1)
    backend.copy_rows(empty, empty)
    backend.clear_rows(empty)
    assert backend.download(empty.first).tolist() == []


def test_copy_and_write_happen_in_the_order_they_were_asked_for(backend: Backend) -> None:
    for allocate in (backend.allocate, backend.allocate_shared):
        first, second = (allocate(12).array((3,), "float32") for _ in range(2))
        backend.write(first, np.ones(3, dtype=np.float32))
        backend.copy(second, first)
        backend.write(first, np.full(3, 2, dtype=np.float32))
        backend.copy(first, second)
        backend.write(second, np.full(3, 3, dtype=np.float32))
        assert [it.tolist() for it in backend.download_all(first, second)] == [[1] * 3, [3] * 3]


def test_marks_tell_the_time_between_them(backend: Backend) -> None:
    first = backend.mark()
    on_device = backend.upload(np.zeros(3, dtype=np.float32))
    last = backend.mark()
    backend.download(on_device)
    assert 0 < backend.seconds(first, last) < 60


def test_traffic_counts_bytes_in_both_directions(backend: Backend) -> None:
    on_device = backend.upload(np.zeros(3, dtype=np.float32))
    backend.write(on_device, np.ones(3, dtype=np.float32))
    backend.download(on_device)
    assert backend.traffic.host_to_device_bytes == 24
    assert backend.traffic.device_to_host_bytes == 12
    assert backend.traffic.stage_calls == 0
    assert backend.traffic.synchronisations == 1
