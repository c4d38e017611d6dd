"""The interface between the TensorRT backend and TensorRT itself.

It is as TensorRT has it: a context remembers profile, shapes and addresses from run to run, and
a change of profile voids the shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atp_runtime.backends.device import Device


class EngineError(Exception):
    """A library could not do what it was asked to.

    Attributes:
        out_of_memory: Whether that is the reason.
    """

    def __init__(self, reason: str, *, out_of_memory: bool = False) -> None:
        super().__init__(reason)
        self.out_of_memory = out_of_memory


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine.

    Attributes:
        name: Its name.
        dtype: As NumPy calls it.
        is_input: Whether the engine reads it.
        on_device: Whether it lies in device memory; inputs that shapes depend on do not.
    """

    name: str
    dtype: str
    is_input: bool
    on_device: bool


@dataclass(frozen=True)
class LayerTime:
    """What a layer of an engine took in a run."""

    name: str
    milliseconds: float


class PlanContext(Protocol):
    """A context on the device's stream; every method may raise EngineError."""

    def set_scratch(self, address: int, nbytes: int) -> None:
        """Where the engine's `scratch_bytes` are, which contexts may share."""
        ...

    def set_profile(self, index: int) -> None:
        """Chooses a profile; every input's shape must then be set again."""
        ...

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Sets an input's shape."""
        ...

    def set_address(self, name: str, address: int) -> None:
        """Sets where an input or output is."""
        ...

    def enqueue(self) -> None:
        """Enqueues a run."""
        ...

    def run_timed(self) -> tuple[LayerTime, ...]:
        """Runs, waits for the end, and returns what the layers took, in the order they ran.

        Later runs of the context wait for their end, too.
        """
        ...

    def describe(self) -> str:
        """The layers for the profile and shapes that are set: JSON of the engine inspector."""
        ...

    def close(self) -> None:
        """Gives the context back; nothing may be running."""
        ...


class PlanEngine(Protocol):
    """A loaded plan."""

    @property
    def tensors(self) -> tuple[EngineTensor, ...]:
        """Inputs and outputs."""
        ...

    @property
    def profiles(self) -> int:
        """How many optimisation profiles it has."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a context needs while it runs."""
        ...

    def context(self) -> PlanContext:
        """One more context.

        Raises:
            EngineError: There is none to be had.
        """
        ...

    def close(self) -> None:
        """Gives the weights back; all contexts must have been given back."""
        ...


class EngineLibrary(Protocol):
    """TensorRT, or TensorRT for RTX."""

    @property
    def name(self) -> str:
        """The Python module's name: "tensorrt" or "tensorrt_rtx"."""
        ...

    @property
    def version(self) -> str:
        """In full: plans load in no other."""
        ...

    def load(self, plan: Path, device: Device) -> PlanEngine:
        """Loads a plan for a device.

        Raises:
            EngineError: It cannot.
        """
        ...
