"""Runs stages with ONNX Runtime on the CPU.

Nothing is copied: inputs and outputs are bound by address.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.backends.base import (
    ALIGNMENT,
    Backend,
    DeviceArray,
    DeviceBuffer,
    LoadedStage,
    Traffic,
)
from atp_runtime.bundle import Bundle
from atp_runtime.errors import AtpError, InputError, MachineError
from atp_runtime.manifest import Stage, TensorSpec

_DTYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64}
_GRAPH_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
_CODES = re.compile(r"^(Error in execution: |\[ONNXRuntimeError\] : \d+ : \w+ : )+")
_ONLY_FATAL = 4  # what fails is raised and told by us; a log line on top would be noise


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime's CPU execution provider.

    Args:
        threads: Threads of one operator; None is one per physical core.

    Raises:
        InputError: `threads` is not between 1 and the number of processors.
        MachineError: ONNX Runtime is not installed or cannot be loaded.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        super().__init__()
        processors = os.cpu_count() or 1
        if threads is not None and not 1 <= threads <= processors:
            raise InputError(
                f"threads: {threads}",
                why=f"this machine has {processors} processors; more threads only cost memory.",
                fix=f"give 1 to {processors}, or leave the number to the library.",
            )
        self._library = _onnxruntime()
        self._threads = threads

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Reserves memory; the pages are only taken when they are first written."""
        try:
            memory = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
        except MemoryError as error:
            raise MachineError(
                f"{nbytes} bytes of memory are not to be had",
                why="caches and hidden states need them.",
                fix="choose a smaller context, or a machine with more memory.",
            ) from error
        start = -memory.ctypes.data % ALIGNMENT
        aligned = memory[start : start + nbytes]
        return DeviceBuffer(memory.ctypes.data + start, nbytes, aligned)

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Makes a session of the stage's graph; its weights are mapped, not read."""
        path = bundle.path(stage.graph)
        try:
            session = self._library.InferenceSession(
                str(path),
                self._options(),
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # it prints to standard output and tries the same again
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise _load_error(stage, error) from error
        _check_signature(stage, session)
        return _OnnxRuntimeStage(stage, session, self.traffic)

    def _options(self) -> Any:
        options = self._library.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = _ONLY_FATAL
        # Each session has its own threads. After a run they would go on spinning and share the
        # cores with the next segment's: 24 layers in 4 sessions then took 1.3 times as long as
        # in one. Stopped at the end of a run they take the same time, within 1 %; without any
        # spinning a decode step takes 1.4 times as long. One pool for all sessions would do as
        # well, but with it no other session of the process could have threads of its own.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Both keep memory of past shapes, in every session, and with a growing past every shape
        # is new. Going without costs nothing in decode and 1 to 2 % of a prefill.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        return options

    def copy(self, into: DeviceArray, source: DeviceArray) -> None:
        """Copies within memory."""
        self._write(into, _view(source))

    def _write(self, into: DeviceArray, array: npt.NDArray[Any]) -> None:
        _view(into)[...] = array

    def _read(self, array: DeviceArray) -> npt.NDArray[Any]:
        return _view(array)


class _OnnxRuntimeStage(LoadedStage):
    def __init__(self, stage: Stage, session: Any, traffic: Traffic) -> None:
        self._stage = stage
        self._session = session
        self._binding = session.io_binding()
        self._bound: dict[str, DeviceArray] = {}
        self._traffic = traffic

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Binds what changed since the last run, then runs."""
        self._traffic.stage_calls += 1
        try:
            self._bind(self._binding.bind_input, inputs)
            self._bind(self._binding.bind_output, outputs)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise _run_error(self._stage, error) from error

    def _bind(self, bind: Any, arrays: Mapping[str, DeviceArray]) -> None:
        bound = self._bound
        for name, array in arrays.items():
            if bound.get(name) is not array:
                bind(name, "cpu", 0, _DTYPES[array.dtype], array.shape, array.address)
                bound[name] = array

    def close(self) -> None:
        """Drops session, binding and the arrays they refer to."""
        self._bound.clear()
        self._binding = self._session = None


def _onnxruntime() -> Any:
    try:
        import onnxruntime  # noqa: PLC0415 - 0.1 s that --help need not take
    except ImportError as error:
        raise MachineError(
            f"ONNX Runtime cannot be loaded: {error}",
            why="it executes the bundle's graphs.",
            fix="python -m pip install onnxruntime",
        ) from error
    return onnxruntime


def _view(array: DeviceArray) -> npt.NDArray[Any]:
    start = array.address - array.owner.address
    flat = array.owner.memory[start : start + array.nbytes]
    view: npt.NDArray[Any] = flat.view(_DTYPES[array.dtype]).reshape(array.shape)
    return view


def _check_signature(stage: Stage, session: Any) -> None:
    for kind, specs, nodes in (
        ("inputs", stage.inputs, session.get_inputs()),
        ("outputs", stage.outputs, session.get_outputs()),
    ):
        declared = sorted(_signature(spec) for spec in specs)
        found = sorted(f"{_GRAPH_TYPES.get(node.type, node.type)} {node.name}" for node in nodes)
        if declared != found:
            odd = sorted(set(declared) ^ set(found))
            raise InputError(
                f"stage {stage.name}: its {kind} are not those of the manifest, see {odd[0]}",
                why="the runtime prepares what the manifest declares.",
                fix="export the bundle again with atp-export.",
            )


def _signature(spec: TensorSpec) -> str:
    return f"{spec.dtype} {spec.name}"


def _load_error(stage: Stage, error: Exception) -> AtpError:
    if _is_memory(error):
        return _memory_error(stage)
    return InputError(
        f"stage {stage.name}: {_message(error)}",
        why="ONNX Runtime cannot load its graph.",
        fix="run atp-export verify on the bundle; if the graph uses an operator or opset that "
        "this version does not know, update onnxruntime or export with --dialect portable.",
    )


def _run_error(stage: Stage, error: Exception) -> AtpError:
    if _is_memory(error):
        return _memory_error(stage)
    return InputError(
        f"stage {stage.name}: {_message(error)}",
        why="ONNX Runtime failed while it ran the graph.",
        fix="run atp-export verify on the bundle.",
    )


def _memory_error(stage: Stage) -> MachineError:
    return MachineError(
        f"stage {stage.name}: not enough memory",
        why="ONNX Runtime could not allocate what the graph needs.",
        fix="use a shorter prompt, close other programs, or use a machine with more memory.",
    )


def _is_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "bad_alloc" in text or "allocate memory" in text


def _message(error: Exception) -> str:
    """The error's first line, without ONNX Runtime's codes before it."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return _CODES.sub("", first)
