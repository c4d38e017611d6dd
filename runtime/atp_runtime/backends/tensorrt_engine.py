"""TensorRT itself: the only module that calls it, as `tensorrt` or as `tensorrt_rtx`.

Their interfaces are the same in what is used here. Loading and running were not yet run on a GPU.
"""

from __future__ import annotations

import importlib
import mmap
from collections import deque
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atp_runtime.backends.device import Device
from atp_runtime.backends.engine_library import EngineError, EngineTensor, LayerTime
from atp_runtime.errors import MachineError

if TYPE_CHECKING:
    import tensorrt as trt

MODULES = ("tensorrt", "tensorrt_rtx")
FEATURES = (
    "EngineInspector.get_engine_information",
    "ExecutionContextAllocationStrategy.USER_MANAGED",
    "ICudaEngine.create_engine_inspector",
    "ICudaEngine.device_memory_size_v2",
    "ICudaEngine.get_tensor_dtype",
    "ICudaEngine.get_tensor_location",
    "ICudaEngine.get_tensor_mode",
    "ICudaEngine.get_tensor_name",
    "ICudaEngine.num_io_tensors",
    "ICudaEngine.num_optimization_profiles",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.nvtx_verbosity",
    "IExecutionContext.profiler",
    "IExecutionContext.set_device_memory",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.set_optimization_profile_async",
    "IExecutionContext.set_tensor_address",
    "IProfiler.report_layer_time",
    "Runtime.deserialize_cuda_engine",
)
_MESSAGES_KEPT = 8
_MEMORY = ("out of memory", "outofmemory")
_INSTALL = (
    "on a Jetson TensorRT comes with JetPack: sudo apt install nvidia-jetpack, and make virtual "
    "environments with --system-site-packages, or they do not see it; elsewhere: python -m pip "
    "install 'atp-llava[tensorrt]'. Without it use --backend onnxruntime."
)


class TensorRtLibrary:
    """An installed TensorRT.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.

    Raises:
        MachineError: It is too old, or cannot begin.

    Attributes:
        name: The module's name.
        version: In full.
    """

    def __init__(self, module: Any) -> None:
        missing = [feature for feature in FEATURES if not _has(module, feature)]
        self.name: str = module.__name__
        self.version: str = module.__version__
        if missing:
            raise MachineError(
                f"TensorRT {self.version} has no {missing[0]}",
                why="engines are run by interfaces that TensorRT has since 10.3.",
                fix="update to JetPack 6.1 or later, or elsewhere to TensorRT 10.3 or later.",
            )
        self._module = module
        self._log = _make_log(module)
        try:
            self._runtime: trt.Runtime = module.Runtime(self._log)
        except (RuntimeError, TypeError) as error:
            raise MachineError(
                f"TensorRT {self.version} cannot begin: {self._log.cause() or error}",
                why="it must reach the GPU to run engines.",
                fix="check that nvidia-smi lists the GPU and that its driver is new enough.",
            ) from error

    def load(self, plan: Path, device: Device) -> TensorRtEngine:
        """Loads a plan, whose file is mapped: its pages need not stay in memory.

        Raises:
            EngineError: TensorRT refuses it.
        """
        with plan.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._log.clear()
        engine = self._runtime.deserialize_cuda_engine(mapped)
        if engine is None:
            raise self._log.error("the plan cannot be loaded")
        return TensorRtEngine(self._module, engine, self._log, device.stream)


class TensorRtEngine:
    """A plan; see `PlanEngine`.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        engine: The plan.
        log: Where the library says what went wrong.
        stream: The handle of the stream that runs are enqueued on.
    """

    def __init__(self, module: Any, engine: trt.ICudaEngine, log: Any, stream: int) -> None:
        self._module = module
        self._engine = engine
        self._log = log
        self._stream = stream

    @property
    def tensors(self) -> tuple[EngineTensor, ...]:
        """Inputs and outputs."""
        names = map(self._engine.get_tensor_name, range(self._engine.num_io_tensors))
        return tuple(self._tensor(name) for name in names)

    def _tensor(self, name: str) -> EngineTensor:
        module, engine = self._module, self._engine
        dtype = engine.get_tensor_dtype(name)
        try:
            shown = np.dtype(module.nptype(dtype)).name
        except TypeError:  # such as bfloat16, which NumPy does not have
            shown = str(dtype)
        return EngineTensor(
            name,
            shown,
            engine.get_tensor_mode(name) == module.TensorIOMode.INPUT,
            engine.get_tensor_location(name) == module.TensorLocation.DEVICE,
        )

    @property
    def profiles(self) -> int:
        """How many there are."""
        return int(self._engine.num_optimization_profiles)

    @property
    def scratch_bytes(self) -> int:
        """What the largest profile needs."""
        return int(self._engine.device_memory_size_v2)

    def context(self) -> TensorRtContext:
        """A context without memory of its own."""
        context = self._engine.create_execution_context(
            self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise self._log.error("there is no context to be had")
        # Engines are built with all details of their layers, and a context would tell NVTX as
        # much, which takes longer to enqueue.
        context.nvtx_verbosity = self._module.ProfilingVerbosity.LAYER_NAMES_ONLY
        return TensorRtContext(self._module, context, self._log, self._stream)

    def close(self) -> None:
        """Drops the engine."""
        self._engine = None


class TensorRtContext:
    """A context of a plan; see `PlanContext`.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        context: TensorRT's.
        log: Where the library says what went wrong.
        stream: The handle of the stream that runs are enqueued on.
    """

    def __init__(self, module: Any, context: trt.IExecutionContext, log: Any, stream: int) -> None:
        self._module = module
        self._context = context
        self._log = log
        self._stream = stream
        self._profiler: Any = None

    def set_scratch(self, address: int, nbytes: int) -> None:
        """Where the context may work."""
        self._context.set_device_memory(address, nbytes)

    def set_profile(self, index: int) -> None:
        """Chooses a profile."""
        done = self._context.set_optimization_profile_async(index, self._stream)
        self._expect(done, f"profile {index} cannot be chosen")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Sets an input's shape."""
        done = self._context.set_input_shape(name, shape)
        self._expect(done, f"{name} cannot be {list(shape)}")

    def set_address(self, name: str, address: int) -> None:
        """Sets where an input or output is."""
        done = self._context.set_tensor_address(name, address)
        self._expect(done, f"{name} cannot be at {address:#x}")

    def enqueue(self) -> None:
        """Enqueues a run."""
        self._expect(self._context.execute_async_v3(self._stream), "the run cannot be enqueued")

    def run_timed(self) -> tuple[LayerTime, ...]:
        """Runs with a profiler, with which TensorRT waits for the end and tells each layer."""
        if self._profiler is None:
            self._profiler = self._context.profiler = _make_profiler(self._module)
        self._profiler.layers.clear()
        self.enqueue()
        return tuple(self._profiler.layers)

    def describe(self) -> str:
        """What the engine inspector knows of the context."""
        inspector = self._context.engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._module.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Drops it."""
        self._context = self._profiler = None

    def _expect(self, done: bool, otherwise: str) -> None:
        if not done:
            raise self._log.error(otherwise)


def open_tensorrt() -> TensorRtLibrary:
    """The installed TensorRT; `tensorrt` is preferred to `tensorrt_rtx`.

    Raises:
        MachineError: There is none, or it cannot be loaded.
    """
    reasons = []
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(str(error))
            continue
        if hasattr(module, "Runtime"):
            return _begin(module)
        # A package of type stubs alone can be imported, too.
        reasons.append(f"the Python package {name!r} has no runtime in it")
    raise MachineError(
        f"TensorRT cannot be loaded: {reasons[0]}",
        why="this backend runs TensorRT engines.",
        fix=_INSTALL,
    )


@cache
def _begin(module: Any) -> TensorRtLibrary:
    """One per process, and for good: a runtime cannot be destroyed while TensorRT logs.

    It holds a lock then, and Python's garbage collection may begin in any logger.
    """
    return TensorRtLibrary(module)


def _has(module: Any, feature: str) -> bool:
    owner, name = feature.split(".")
    return hasattr(getattr(module, owner, None), name)


def _make_profiler(module: Any) -> Any:
    """A profiler that keeps what it is told."""

    class Profiler(module.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)
            self.layers: list[LayerTime] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.append(LayerTime(layer_name, ms))

    return Profiler()


def _make_log(module: Any) -> Any:
    """A logger that keeps errors to be told by whoever notices the failure."""
    severity = module.ILogger.Severity
    errors = (severity.INTERNAL_ERROR, severity.ERROR)

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._messages: deque[str] = deque(maxlen=_MESSAGES_KEPT)

        def log(self, severity: Any, msg: str) -> None:
            if severity in errors:
                self._messages.append(msg.strip())

        def clear(self) -> None:
            self._messages.clear()

        def cause(self) -> str:
            """The first error since the last failure; later ones tend to follow from it."""
            return next(iter(self._messages), "")

        def error(self, otherwise: str) -> EngineError:
            """The failure to raise; `otherwise` describes it if nothing was said."""
            said = " ".join(self._messages).lower()
            reason = self.cause() or otherwise
            self.clear()
            return EngineError(reason, out_of_memory=any(sign in said for sign in _MEMORY))

    return Log()
