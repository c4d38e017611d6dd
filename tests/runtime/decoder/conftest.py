"""The hand-made bundle's decoder on every backend, and a naive one beside it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import host_backend, write_engines
from tests.runtime.decoder.naive_decoder import NaiveDecoder

from atp_runtime.backends import Backend, open_backend
from atp_runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, Provider
from atp_runtime.bundle import Bundle
from atp_runtime.decoder import SegmentedDecoder

CAPACITY = 40
CPU = Provider("CPUExecutionProvider", "cpu")
BACKENDS: dict[str, Callable[[], Backend]] = {
    "onnxruntime": lambda: open_backend(threads=1),
    "onnxruntime on a device": lambda: OnnxRuntimeGpuBackend(HostDevice(late=False), CPU),
    "tensorrt": host_backend,
    "tensorrt, shared memory": lambda: host_backend(integrated=True),
    "tensorrt, no graphs": lambda: host_backend(graphs=False),
}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture(scope="session")
def hand_made(hand_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, with engines for all positions of the model."""
    root = Path(shutil.copytree(hand_made, tmp_path_factory.mktemp("engines") / "hand-made"))
    write_engines(root, longest=96)
    return root


@pytest.fixture(scope="module")
def loaded(hand_made: Path, backend: Backend) -> Iterator[SegmentedDecoder]:
    with SegmentedDecoder(Bundle.open(hand_made), backend, CAPACITY) as decoder:
        yield decoder


@pytest.fixture
def decoder(loaded: SegmentedDecoder) -> SegmentedDecoder:
    loaded.reset()
    return loaded


@pytest.fixture
def naive(head: np.ndarray) -> NaiveDecoder:
    return NaiveDecoder(head)
