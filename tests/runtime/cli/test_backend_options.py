"""`--backend` and what belongs to it, from the command line to what is opened."""

import argparse

import pytest
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import HostLibrary

from atp_runtime.backends import BACKENDS, cuda_device, open_backend, tensorrt_engine
from atp_runtime.cli.backend_options import add_backend_options


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_backend_options(parser)
    return parser.parse_args(words)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and TensorRT, both on host memory."""
    monkeypatch.setattr(cuda_device.CudaDevice, "open", HostDevice)
    monkeypatch.setattr(tensorrt_engine, "open_tensorrt", HostLibrary)


def test_every_backend_can_be_asked_for() -> None:
    assert [parse("--backend", name).backend for name in BACKENDS] == list(BACKENDS)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("words", "replays"), [((), True), (("--no-cuda-graph",), False)])
def test_decode_steps_are_recorded_unless_that_is_not_wanted(
    words: tuple[str, ...], replays: bool
) -> None:
    options = parse("--backend", "tensorrt", *words)
    assert open_backend(options.backend, cuda_graphs=options.cuda_graphs).replays is replays


def test_backend_that_records_nothing_takes_the_option_as_it_is() -> None:
    options = parse("--no-cuda-graph")
    assert not open_backend(options.backend, cuda_graphs=options.cuda_graphs).replays
