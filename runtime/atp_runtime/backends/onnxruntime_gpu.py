"""Runs stages with ONNX Runtime's own CUDA and TensorRT execution providers.

Arrays are bound by their device address and everything is enqueued on the device's stream, as in
the TensorRT backend. Not yet run on a GPU: the tests run it on host memory, with the CPU provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atp_runtime.backends.base import LoadedStage
from atp_runtime.backends.device import Device
from atp_runtime.backends.device_backend import DeviceBackend
from atp_runtime.backends.onnxruntime_session import (
    OnnxRuntimeStage,
    load_library,
    open_session,
    session_options,
)
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import ENGINES_DIRECTORY
from atp_runtime.errors import MachineError
from atp_runtime.manifest import AxisRange, Stage

_WITHOUT_WAITING = "disable_synchronize_execution_providers"
_ENGINES = f"{ENGINES_DIRECTORY}/onnxruntime"  # relative to the bundle


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: ONNX Runtime's.
        place: ONNX Runtime's name for its memory.
    """

    name: str
    place: str


CUDA = Provider("CUDAExecutionProvider", "cuda")
TENSORRT = Provider("TensorrtExecutionProvider", "cuda")


class OnnxRuntimeGpuBackend(DeviceBackend):
    """One of ONNX Runtime's execution providers on one device.

    Args:
        device: The GPU.
        provider: What runs the graphs.

    Raises:
        MachineError: ONNX Runtime is missing, or was built without that provider.
    """

    def __init__(self, device: Device, provider: Provider) -> None:
        super().__init__(device)
        self._library = find_provider(provider)
        self._provider = provider

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Makes a session of the stage's graph.

        Raises:
            InputError: The graph is damaged, contradicts the manifest or needs a newer library.
            MachineError: Memory does not suffice, or the provider cannot begin.
        """
        provider, library = self._provider, self._library
        options = session_options(library, None)
        providers = _providers(provider, self.device, bundle, stage)
        session = open_session(library, stage, bundle.path(stage.graph), options, providers)
        if provider.name not in session.get_providers():
            raise MachineError(
                f"stage {stage.name}: {provider.name} cannot begin",
                why="ONNX Runtime has it, but not the CUDA, cuDNN or TensorRT libraries it needs.",
                fix="install the versions that this onnxruntime-gpu was built for, or use "
                "--backend onnxruntime.",
            )
        run_options = library.RunOptions()
        run_options.add_run_config_entry(_WITHOUT_WAITING, "1")
        return OnnxRuntimeStage(stage, session, self, provider.place, run_options)


def find_provider(provider: Provider) -> Any:
    """ONNX Runtime, if it has that provider.

    Raises:
        MachineError: It is not installed, or has not.
    """
    library = load_library()
    found = library.get_available_providers()
    if provider.name not in found:
        raise MachineError(
            f"this ONNX Runtime has no {provider.name}",
            why=f"onnxruntime {library.__version__} as installed has {', '.join(found)}.",
            fix="replace the package onnxruntime by onnxruntime-gpu; for a Jetson NVIDIA offers "
            "builds of it for each JetPack. Or use --backend tensorrt or onnxruntime.",
        )
    return library


def _providers(
    provider: Provider, device: Device, bundle: Bundle, stage: Stage
) -> list[tuple[str, dict[str, str]]]:
    """The provider with its options, and behind it what runs the operators that it lacks."""
    if provider.place != CUDA.place:
        return [(provider.name, {})]
    common = {"device_id": "0", "user_compute_stream": str(device.stream)}
    cuda = (CUDA.name, {**common, "arena_extend_strategy": "kSameAsRequested"})
    if provider == CUDA:
        return [cuda]
    return [(provider.name, common | _tensorrt_options(bundle, stage)), cuda]


def _tensorrt_options(bundle: Bundle, stage: Stage) -> dict[str, str]:
    options = {
        f"trt_profile_{kind}_shapes": shapes
        for kind, shapes in profile_shapes(stage, bundle.manifest.axes).items()
    }
    if any(spec.dtype == "float16" for spec in (*stage.inputs, *stage.outputs)):
        options["trt_fp16_enable"] = "1"  # else it computes a float16 graph in float32
    cache = bundle.path(_ENGINES)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        # Of a bundle that cannot be written the provider builds its engines at every start.
        return options
    # The provider names the files by a hash of the graph, the GPU and its own version.
    return {**options, "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}


def profile_shapes(stage: Stage, axes: Mapping[str, AxisRange]) -> dict[str, str]:
    """The provider's "min", "opt" and "max" shapes of a stage's inputs.

    Without them it builds an engine anew whenever a length leaves the range seen so far, which
    with a growing past is at every token.
    """
    return {
        kind: ",".join(
            f"{spec.name}:" + "x".join(str(_length(it, axes, field)) for it in spec.shape)
            for spec in stage.inputs
        )
        for kind, field in (("min", "minimum"), ("opt", "typical"), ("max", "maximum"))
    }


def _length(axis: int | str, axes: Mapping[str, AxisRange], field: str) -> int:
    return axis if isinstance(axis, int) else int(getattr(axes[axis], field))
