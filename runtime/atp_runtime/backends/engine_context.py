"""An engine's context that is told only what changed since it was last told."""

from __future__ import annotations

from collections.abc import Mapping

from atp_runtime.backends.base import DeviceArray, DeviceBuffer
from atp_runtime.backends.engine_library import LayerTime, PlanContext


class EngineContext:
    """A context with what it was told; every method may raise `EngineError`.

    Args:
        context: Fresh.
    """

    def __init__(self, context: PlanContext) -> None:
        self._context = context
        self._profile: int | None = None
        self._scratch: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def prepare(
        self,
        profile: int,
        scratch: DeviceBuffer,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
    ) -> bool:
        """Tells what the next run needs; returns whether any of it was new."""
        news = self._set_scratch(scratch) | self._set_profile(profile)
        for name, array in inputs.items():
            news |= self._set_shape(name, array.shape) | self._set_address(name, array.address)
        for name, array in outputs.items():
            news |= self._set_address(name, array.address)
        return news

    def enqueue(self) -> None:
        """Enqueues a run."""
        self._context.enqueue()

    def run_timed(self) -> tuple[LayerTime, ...]:
        """Runs, waits, and returns what the layers took."""
        return self._context.run_timed()

    def describe(self) -> str:
        """The layers as they were told to run last, as JSON."""
        return self._context.describe()

    def close(self) -> None:
        """Gives the context back; nothing may be running."""
        self._context.close()

    def _set_scratch(self, scratch: DeviceBuffer) -> bool:
        if self._scratch == scratch.address:
            return False
        self._context.set_scratch(scratch.address, scratch.nbytes)
        self._scratch = scratch.address
        return True

    def _set_profile(self, profile: int) -> bool:
        if self._profile == profile:
            return False
        self._shapes.clear()
        self._profile = None
        self._context.set_profile(profile)
        self._profile = profile
        return True

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._shapes.get(name) == shape:
            return False
        self._context.set_shape(name, shape)
        self._shapes[name] = shape
        return True

    def _set_address(self, name: str, address: int) -> bool:
        if self._addresses.get(name) == address:
            return False
        self._context.set_address(name, address)
        self._addresses[name] = address
        return True
