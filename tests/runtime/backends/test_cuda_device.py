"""The calls of the CUDA runtime, made to a small library that keeps the signatures."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atp_runtime.backends import cudart
from atp_runtime.backends.base import ALIGNMENT
from atp_runtime.backends.cuda_device import CudaDevice
from atp_runtime.backends.cudart import Cudart, load_cudart
from atp_runtime.backends.device import MemoryState
from atp_runtime.backends.device_backend import DeviceBackend
from atp_runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, Provider
from atp_runtime.errors import MachineError

SOURCE = Path(__file__).with_name("fake_cudart.c")
COUNTS = (
    *("live", "pinned", "events", "kind", "stream_flags", "host_flags", "pending"),
    *("graphs", "executables", "launches", "capturing"),
)
MEMORY = 1 << 20


@pytest.fixture(scope="session")
def library_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("cudart") / "libcudart.so.12"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture
def library(library_file: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library_file))
    loaded.fake_order.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t)
    loaded.fake_count.restype = ctypes.c_size_t
    loaded.fake_order(1, 0, MEMORY)
    return loaded


@pytest.fixture
def count(library: ctypes.CDLL) -> Callable[[str], int]:
    return lambda what: library.fake_count(COUNTS.index(what))


@pytest.fixture
def device(library: ctypes.CDLL) -> CudaDevice:
    return CudaDevice(Cudart(library))


def test_device_says_what_it_is(library: ctypes.CDLL, device: CudaDevice) -> None:
    assert (device.name, device.sm, device.integrated) == ("Orin", 87, False)
    assert device.memory() == MemoryState(MEMORY, MEMORY)
    library.fake_order(1, 1, MEMORY)
    assert CudaDevice(Cudart(library)).integrated


def test_stream_does_not_wait_for_the_default_one(
    device: CudaDevice, count: Callable[[str], int]
) -> None:
    assert device.stream
    assert count("stream_flags") == 1


@pytest.mark.parametrize("nbytes", [0, 1, 1000])
def test_blocks_are_aligned_never_null_and_freed_with_their_last_array(
    device: CudaDevice, count: Callable[[str], int], nbytes: int
) -> None:
    before = count("live")
    array = device.allocate(nbytes).array((nbytes // 4,), "float32")
    assert array.address
    assert array.address % ALIGNMENT == 0
    assert count("live") == before + 1
    del array
    assert count("live") == before


def test_host_memory_is_mapped_and_freed_with_its_last_view(
    device: CudaDevice, count: Callable[[str], int]
) -> None:
    before = count("pinned")
    view = device.allocate_host(64).part(16, 32).array((4,), "int64", 0)
    view[...] = [1, 2, 3, 4]
    assert view.tolist() == [1, 2, 3, 4]
    assert (count("host_flags"), count("pinned")) == (2, before + 1)
    del view
    assert count("pinned") == before
    assert device.allocate_host(0).nbytes == 0


def test_what_is_copied_in_comes_out_again(device: CudaDevice, count: Callable[[str], int]) -> None:
    host, back = device.allocate_host(8), device.allocate_host(8)
    first, second = device.allocate(8), device.allocate(8)
    host.content[:] = np.arange(8)
    device.copy_in(first.address, host.address, 8)
    device.copy(second.address, first.address, 8)
    device.copy_out(back.address, second.address, 8)
    device.synchronise()
    assert back.content.tolist() == list(range(8))
    assert count("kind") == 4  # by the addresses, as shared memory is both


def test_rows_are_copied_and_cleared_at_their_pitches(
    device: CudaDevice, count: Callable[[str], int]
) -> None:
    source, into = device.allocate_host(6), device.allocate_host(12)
    source.content[:] = np.arange(6)
    into.content[:] = 9
    device.copy_rows(into.address + 1, 4, source.address, 2, 2, 3)
    device.synchronise()
    assert into.content.tolist() == [9, 0, 1, 9, 9, 2, 3, 9, 9, 4, 5, 9]
    assert count("kind") == 4
    device.clear_rows(into.address, 6, 3, 2)
    device.synchronise()
    assert into.content.tolist() == [0, 0, 0, 9, 9, 2, 0, 0, 0, 4, 5, 9]


def test_what_is_captured_happens_whenever_it_is_launched(
    device: CudaDevice, count: Callable[[str], int]
) -> None:
    source, into = device.allocate_host(4), device.allocate_host(4)
    source.content[:], into.content[:] = 1, 0
    graph = device.capture(lambda: device.copy(into.address, source.address, 4))
    device.synchronise()
    assert into.content.tolist() == [0] * 4
    for value in (2, 3):
        source.content[:] = value
        graph.launch()
        device.synchronise()
        assert into.content.tolist() == [value] * 4
    assert (count("launches"), count("graphs"), count("executables")) == (2, 0, 1)
    del graph
    assert count("executables") == 0


def test_capture_that_fails_leaves_the_stream_as_it_was(
    library: ctypes.CDLL, device: CudaDevice, count: Callable[[str], int]
) -> None:
    source, into = device.allocate_host(4), device.allocate_host(4)

    def copy() -> None:
        device.copy(into.address, source.address, 4)

    def copy_often() -> None:
        for _ in range(5):  # more than it can record
            copy()

    def stop() -> None:
        copy()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.capture(stop)
    with pytest.raises(MachineError, match="cudaStreamEndCapture"):
        device.capture(copy_often)
    library.fake_fail(2)
    with pytest.raises(MachineError, match="cudaGraphInstantiateWithFlags"):
        device.capture(copy)
    library.fake_fail(0)
    assert [count(it) for it in ("capturing", "graphs", "executables", "pending")] == [0] * 4
    source.content[:] = 5
    copy()
    device.synchronise()
    assert into.content.tolist() == [5] * 4


def test_events_tell_seconds_and_are_used_again(
    device: CudaDevice, count: Callable[[str], int]
) -> None:
    for _ in range(3):
        first, last = device.record(), device.record()
        assert device.seconds(first, last) == pytest.approx(2.5e-3)
        del first, last
    created = count("events")
    device.record()
    assert count("events") == created


def test_allocation_that_fails_says_how_much_is_free(
    device: CudaDevice, count: Callable[[str], int]
) -> None:
    for allocate in (device.allocate, device.allocate_host):
        with pytest.raises(MachineError, match=r"2\.1 MB of GPU memory .* 1\.0 of 1\.0 MB") as no:
            allocate(2 * MEMORY)
        assert "--max-tokens" in no.value.fix
    assert count("pending") == 0


def test_error_of_the_gpu_is_told_in_its_words(library: ctypes.CDLL, device: CudaDevice) -> None:
    library.fake_fail(700)
    with pytest.raises(MachineError, match="an illegal memory access") as raised:
        device.synchronise()
    assert "--backend onnxruntime" in raised.value.fix


@pytest.mark.parametrize(
    ("code", "said"), [(100, "no CUDA-capable"), (35, "driver version"), (0, "no GPU that CUDA")]
)
def test_machine_without_a_gpu_is_refused(library: ctypes.CDLL, code: int, said: str) -> None:
    library.fake_order(0, 0, MEMORY)
    library.fake_fail(code)
    with pytest.raises(MachineError, match=said) as raised:
        CudaDevice(Cudart(library))
    assert "--backend onnxruntime" in raised.value.fix


def test_backend_runs_on_it(device: CudaDevice) -> None:
    backend: DeviceBackend = OnnxRuntimeGpuBackend(device, Provider("CPUExecutionProvider", "cpu"))
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    np.testing.assert_array_equal(backend.download(backend.upload(values)), values)


def test_first_library_that_is_a_cuda_runtime_is_taken(
    library_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libcudart.so.13").write_text("not a library")
    tried = iter([str(tmp_path / "libcudart.so.13"), "libc.so.6", str(library_file)])
    monkeypatch.setattr(cudart, "_candidates", lambda: tried)
    assert CudaDevice(load_cudart()).name == "Orin"


def test_machine_without_the_cuda_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudart, "_candidates", lambda: iter(["libc.so.6"]))
    with pytest.raises(MachineError, match="no CUDA runtime") as raised:
        load_cudart()
    assert "nvidia-jetpack" in raised.value.fix


def test_libraries_of_python_packages_are_candidates_behind_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, number in (("cu13", 13), ("cuda_runtime", 12)):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / folder / "lib" / f"libcudart.so.{number}").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    names = list(cudart._candidates())
    assert names[0] == "libcudart.so.13"
    assert [Path(name).name for name in names if str(tmp_path) in name] == [
        "libcudart.so.12",
        "libcudart.so.13",
    ]
