"""Sessions of ONNX Runtime, wherever they run: made, run by address, and their errors told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atp_runtime.backends.base import Backend, DeviceArray, LoadedStage
from atp_runtime.backends.signature import check_signature
from atp_runtime.errors import AtpError, InputError, MachineError
from atp_runtime.manifest import Stage

_DTYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64}
_GRAPH_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
_CODES = re.compile(r"^(Error in execution: |\[ONNXRuntimeError\] : \d+ : \w+ : )+")
_ONLY_FATAL = 4  # what fails is raised and told by us; a log line on top would be noise
_INTEGERS = "4"  # the level's number at MatMulNBits; FP32 has 1
_MEMORY = ("bad_alloc", "allocate memory", "out of memory")


class OnnxRuntimeStage(LoadedStage):
    """A session whose inputs and outputs are bound by address.

    Args:
        stage: What it runs.
        session: Of its graph.
        backend: Whose stage it is.
        place: ONNX Runtime's name for where the arrays are.
        run_options: Of every run; None for the library's.
    """

    def __init__(
        self,
        stage: Stage,
        session: Any,
        backend: Backend,
        place: str = "cpu",
        run_options: Any = None,
    ) -> None:
        self._stage = stage
        self._session = session
        self._binding = session.io_binding()
        self._bound: dict[str, DeviceArray] = {}
        self._backend = backend
        self._place = place
        self._run_options = run_options

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Binds what changed since the last run, then runs."""
        self._backend.stage_started()
        try:
            self._bind(self._binding.bind_input, inputs)
            self._bind(self._binding.bind_output, outputs)
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise _run_error(self._stage, error) from error

    def _bind(self, bind: Any, arrays: Mapping[str, DeviceArray]) -> None:
        bound = self._bound
        for name, array in arrays.items():
            if bound.get(name) is not array:
                bind(name, self._place, 0, _DTYPES[array.dtype], array.shape, array.address)
                bound[name] = array

    def close(self) -> None:
        """Drops session, binding and the arrays they refer to."""
        self._bound.clear()
        self._binding = self._session = None


def load_library() -> Any:
    """The module `onnxruntime`.

    Raises:
        MachineError: It is not installed or cannot be loaded.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - 0.1 s that --help need not take
    except ImportError as error:
        raise MachineError(
            f"ONNX Runtime cannot be loaded: {error}",
            why="it executes the bundle's graphs.",
            fix="python -m pip install onnxruntime",
        ) from error
    return onnxruntime


def has_opset_24(library: Any) -> bool:
    """Whether it runs opset 24, as ONNX Runtime does since 1.24."""
    major, minor = library.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (1, 24)


def session_options(library: Any, threads: int | None) -> Any:
    """Options for sessions that run one after the other.

    Args:
        library: ONNX Runtime.
        threads: Threads of one operator; None is one per physical core.
    """
    options = library.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = _ONLY_FATAL
    # Each session has its own threads. After a run they would go on spinning and share the
    # cores with the next segment's: 24 layers in 4 sessions then took 1.3 times as long as
    # in one. Stopped at the end of a run they take the same time, within 1 %; without any
    # spinning a decode step takes 1.4 times as long. One pool for all sessions would do as
    # well, but with it no other session of the process could have threads of its own.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Where weights alone have 4 or 8 bits, products are of integers and activations rounded to 8
    # bits block by block. Computed in float32, the library's default, 4 bits take twice the time
    # to decode and 8 bits ninety times; the rounding adds to the error of 4 bits less than 1 %.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", _INTEGERS)
    # Both keep memory of past shapes, in every session, and with a growing past every shape
    # is new. Going without costs nothing in decode and 1 to 2 % of a prefill.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return options


def open_session(
    library: Any, stage: Stage, path: Path, options: Any, providers: Sequence[Any]
) -> Any:
    """A session of the stage's graph; its weights are mapped, not read.

    Args:
        library: ONNX Runtime.
        stage: What the graph is.
        path: Where it is.
        options: See `session_options`.
        providers: What runs it: names, or pairs of name and options.

    Raises:
        InputError: The graph is damaged, contradicts the manifest or needs a newer library.
        MachineError: The machine's memory does not suffice.
    """
    try:
        session = library.InferenceSession(
            str(path),
            options,
            providers=providers,
            enable_fallback=0,  # it prints to standard output and tries the same again
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise _load_error(stage, error) from error
    inputs, outputs = (
        [(node.name, _GRAPH_TYPES.get(node.type, node.type)) for node in nodes]
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    check_signature(stage, inputs, outputs, fix="export the bundle again with atp-export.")
    return session


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
    return isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY)


def _message(error: Exception) -> str:
    """The error's first line, without ONNX Runtime's codes before it."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return _CODES.sub("", first)
