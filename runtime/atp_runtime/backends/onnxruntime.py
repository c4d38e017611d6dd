"""Runs stages with ONNX Runtime on the CPU.

Nothing is copied: inputs and outputs are bound by address.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atp_runtime.backends.base import (
    ALIGNMENT,
    ArrayRows,
    Backend,
    DeviceArray,
    DeviceBuffer,
    LoadedStage,
)
from atp_runtime.backends.onnxruntime_session import (
    OnnxRuntimeStage,
    has_opset_24,
    load_library,
    open_session,
    session_options,
)
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError, MachineError
from atp_runtime.manifest import NATIVE, Stage


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime's CPU execution provider.

    Args:
        threads: Threads of one operator; None is one per physical core.
        packed: Whether weights are copied into the order that products read fastest. That takes
            longer than a first answer and makes prompts about a tenth faster from then on, so it
            pays from some ten answers; else they stay where their files are mapped.

    Raises:
        InputError: `threads` is not between 1 and the number of processors.
        MachineError: ONNX Runtime is not installed or cannot be loaded.
    """

    def __init__(self, *, threads: int | None = None, packed: bool = True) -> None:
        super().__init__()
        processors = os.cpu_count() or 1
        if threads is not None and not 1 <= threads <= processors:
            raise InputError(
                f"threads: {threads}",
                why=f"this machine has {processors} processors; more threads only cost memory.",
                fix=f"give 1 to {processors}, or leave the number to the library.",
            )
        self._library = load_library()
        self._threads = threads
        self._packed = packed

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

    def fastest_view(self, bundle: Bundle) -> Bundle:
        """The native dialect, whose attention is one operator, where the library has opset 24."""
        known = NATIVE in bundle.manifest.dialects and has_opset_24(self._library)
        return bundle.in_dialect(NATIVE) if known else bundle

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Makes a session of the stage's graph; its weights are mapped, and read if packed."""
        options = session_options(self._library, self._threads)
        if not self._packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        path, providers = bundle.path(stage.graph), ["CPUExecutionProvider"]
        session = open_session(self._library, stage, path, options, providers)
        return OnnxRuntimeStage(stage, session, self)

    def copy(self, into: DeviceArray, source: DeviceArray) -> None:
        """Copies within memory."""
        self._write(into, _view(source))

    def clear_rows(self, rows: ArrayRows) -> None:
        """Overwrites memory."""
        for array in rows.arrays():
            _view(array)[...] = 0

    def _write(self, into: DeviceArray, array: npt.NDArray[Any]) -> None:
        _view(into)[...] = array

    def _read(self, arrays: Sequence[DeviceArray]) -> Sequence[npt.NDArray[Any]]:
        return [_view(array) for array in arrays]


def _view(array: DeviceArray) -> npt.NDArray[Any]:
    start = array.address - array.owner.address
    flat = array.owner.memory[start : start + array.nbytes]
    view: npt.NDArray[Any] = flat.view(array.dtype).reshape(array.shape)
    return view
