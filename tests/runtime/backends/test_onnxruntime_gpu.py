from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.runtime.backends.host_device import HostDevice

from atp_runtime.backends import onnxruntime_gpu, open_backend
from atp_runtime.backends.onnxruntime_gpu import (
    CUDA,
    TENSORRT,
    OnnxRuntimeGpuBackend,
    Provider,
    profile_shapes,
)
from atp_runtime.bundle import Bundle
from atp_runtime.errors import MachineError
from atp_runtime.manifest import AxisRange, Stage, TensorSpec

AXES = {"tokens": AxisRange(1, 640, 4096), "past": AxisRange(0, 0, 4096)}
STAGE = Stage(
    "segment_0",
    "segment",
    "onnx/segment_0.onnx",
    (),
    (
        TensorSpec("hidden_states", "float16", (1, "tokens", 64)),
        TensorSpec("past_key_values.0.key", "float16", (1, "past", 2, 4)),
    ),
    (),
)


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_provider_that_the_installed_onnx_runtime_lacks_is_the_machines_fault(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = SimpleNamespace(
        __version__="1.20", get_available_providers=lambda: ["CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime_gpu, "load_library", lambda: installed)
    with pytest.raises(MachineError, match="this ONNX Runtime has no") as raised:
        open_backend(name)
    assert "as installed has CPUExecutionProvider" in raised.value.why
    assert "onnxruntime-gpu" in raised.value.fix


def test_tensorrt_provider_is_given_the_ranges_of_every_input() -> None:
    assert profile_shapes(STAGE, AXES) == {
        "min": "hidden_states:1x1x64,past_key_values.0.key:1x0x2x4",
        "opt": "hidden_states:1x640x64,past_key_values.0.key:1x0x2x4",
        "max": "hidden_states:1x4096x64,past_key_values.0.key:1x4096x2x4",
    }


def test_providers_enqueue_on_the_devices_stream(hand_made: Path) -> None:
    device, bundle = HostDevice(), Bundle.open(hand_made)
    for provider in (CUDA, TENSORRT):
        head = bundle.manifest.stage("head")
        for _, options in onnxruntime_gpu._providers(provider, device, bundle, head):
            assert options["user_compute_stream"] == str(device.stream)


def test_tensorrt_provider_keeps_engines_in_the_bundle_and_leaves_the_rest_to_cuda(
    own_bundle: Path,
) -> None:
    bundle = Bundle.open(own_bundle)
    head = bundle.manifest.stage("head")
    providers = onnxruntime_gpu._providers(TENSORRT, HostDevice(), bundle, head)
    assert [name for name, _ in providers] == [TENSORRT.name, CUDA.name]
    cache = Path(providers[0][1]["trt_engine_cache_path"])
    assert cache.is_dir()
    assert cache.parent == own_bundle.resolve() / "engines"


def test_provider_that_cannot_begin_is_not_replaced_by_the_cpu(
    hand_made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime_gpu, "find_provider", lambda _provider: load_library())
    monkeypatch.setattr(onnxruntime_gpu, "open_session", lambda *_: session)
    bundle = Bundle.open(hand_made)
    backend = OnnxRuntimeGpuBackend(HostDevice(), CUDA)
    with pytest.raises(MachineError, match="stage head: CUDAExecutionProvider cannot begin"):
        backend.load(bundle, bundle.manifest.stage("head"))


def load_library() -> object:
    return onnxruntime_gpu.load_library()


def test_stages_run_on_addresses_of_the_device(hand_made: Path) -> None:
    backend = OnnxRuntimeGpuBackend(HostDevice(late=False), Provider("CPUExecutionProvider", "cpu"))
    bundle = Bundle.open(hand_made)
    for stage in bundle.manifest.stages:
        backend.load(bundle, stage).close()
