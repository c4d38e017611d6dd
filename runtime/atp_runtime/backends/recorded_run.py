"""A run of an engine on the same arrays again and again, as a CUDA graph from the second on.

NVIDIA asks for three things. The first run must not be recorded, as a context defers work to it
that a recording does not take. What was recorded holds as long as the context is as it was then,
so every recording has a context of its own; they share weights and scratch memory. And addresses
are part of a recording, that of the scratch memory, too. Not every engine can be recorded: one
that cannot goes on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from atp_runtime.backends.base import DeviceArray, DeviceBuffer
from atp_runtime.backends.device import Device, DeviceGraph
from atp_runtime.backends.engine_context import EngineContext
from atp_runtime.backends.engine_library import EngineError
from atp_runtime.errors import MachineError

Arrays = Mapping[str, DeviceArray]


class RecordedRun:
    """The run; each call enqueues it once.

    Args:
        device: What it runs on.
        context: Nobody else's.
        profile: The optimisation profile's index.
        scratch: Says where the scratch memory is.
        inputs: By name, at addresses that the engine takes.
        outputs: Likewise.
    """

    def __init__(
        self,
        device: Device,
        context: EngineContext,
        profile: int,
        scratch: Callable[[], DeviceBuffer],
        inputs: Arrays,
        outputs: Arrays,
    ) -> None:
        self._device = device
        self._context = context
        self._profile = profile
        self._find_scratch = scratch
        self._arrays = inputs, outputs
        self._graph: DeviceGraph | None = None
        self._ran = False
        self._recordable = True

    def enqueue(self) -> bool:
        """Enqueues the run; returns whether as a graph.

        Raises:
            EngineError: The engine cannot be run.
            MachineError: The graph cannot be launched.
        """
        if self._context.prepare(self._profile, self._find_scratch(), *self._arrays):
            self._graph, self._ran = None, False
        elif self._graph is None and self._ran and self._recordable:
            self._record()
        if self._graph is not None:
            self._graph.launch()
            return True
        self._context.enqueue()
        self._ran = True
        return False

    def close(self) -> None:
        """Gives graph and context back; nothing may be running."""
        self._graph = None
        self._context.close()

    def _record(self) -> None:
        try:
            self._graph = self._device.capture(self._context.enqueue)
        except (EngineError, MachineError):
            self._recordable = False
