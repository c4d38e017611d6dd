"""The interface between the runtime and a library that executes stage graphs.

All shapes are known on the host before a stage runs, so inputs and outputs are device memory
the caller owns: a stage reads and writes where it is told and allocates nothing that outlives
the call. That is what lets keys and values be written in place and hidden states stay on the
device from segment to segment.

What a backend is asked to do happens in that order, but perhaps later: only `download` waits for
it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from atp_runtime.bundle import Bundle
from atp_runtime.manifest import Stage

ALIGNMENT = 256
"""Bytes. TensorRT takes no address that is less aligned; the CPU's vector loads want 64."""

_ITEM_SIZES = {"float32": 4, "float16": 2, "int64": 8}


def item_size(dtype: str) -> int:
    """Bytes of one element.

    Raises:
        ValueError: `dtype` is not "float32", "float16" or "int64".
    """
    size = _ITEM_SIZES.get(dtype)
    if size is None:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(_ITEM_SIZES)}")
    return size


@dataclass(frozen=True, eq=False)
class DeviceBuffer:
    """A block of device memory.

    Attributes:
        address: Of its first byte, a multiple of `ALIGNMENT`, never null.
        nbytes: Its size; may be 0.
        memory: What the backend allocated; the block is freed with its last reference.
    """

    address: int
    nbytes: int
    memory: Any

    def array(self, shape: tuple[int, ...], dtype: str, offset: int = 0) -> DeviceArray:
        """The array of that shape, `offset` bytes into the block.

        Raises:
            ValueError: It would not lie inside the block.
        """
        size = math.prod(shape) * item_size(dtype)
        if offset < 0 or offset + size > self.nbytes:
            raise ValueError(f"{shape} {dtype} at {offset} is outside of {self.nbytes} bytes")
        return DeviceArray(self.address + offset, shape, dtype, self)


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A dense array in device memory.

    Attributes:
        address: Of its first element, never null, also when it has no elements.
        shape: As many lengths as axes.
        dtype: "float32", "float16" or "int64".
        owner: The block it lies in, kept alive by it.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: DeviceBuffer

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * item_size(self.dtype)


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """Arrays of one shape and dtype that lie at equal distances.

    Attributes:
        first: The first of them.
        pitch: Bytes from one to the next.
        count: How many there are; at least one.
    """

    first: DeviceArray
    pitch: int
    count: int

    def arrays(self) -> tuple[DeviceArray, ...]:
        """Each by itself, in order."""
        first = self.first
        return tuple(
            DeviceArray(first.address + row * self.pitch, first.shape, first.dtype, first.owner)
            for row in range(self.count)
        )


@dataclass
class Traffic:
    """What a backend has been asked to do so far.

    Attributes:
        host_to_device_bytes: Written by `Backend.write` and `Backend.upload`.
        device_to_host_bytes: Read by `Backend.download`. Counted where host and device share
            memory too, so that a run on the CPU shows what another device would have to move.
        stage_calls: Runs of any stage.
        synchronisations: Times the host waited for the device: for every download, counted as
            the bytes are, and where a backend had to otherwise.
        replays: Of the runs, those that launched a recorded graph.
    """

    host_to_device_bytes: int = 0
    device_to_host_bytes: int = 0
    stage_calls: int = 0
    synchronisations: int = 0
    replays: int = 0


class LoadedStage(ABC):
    """A stage's graph, ready to run.

    Attributes:
        longest: The greatest lengths of named axes that it can take; an axis that is missing has
            no limit of its own.
    """

    longest: Mapping[str, int] = MappingProxyType({})

    @abstractmethod
    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        """Runs the graph once.

        On return it may not have run yet, but whatever the backend is asked to do later comes
        after it: what was there before is read, and the outputs are written before anything
        reads them.

        Preparing an array takes time, so a stage remembers the one it was last given for a
        name: pass the same object as long as neither address nor shape change.

        Args:
            inputs: Every input of the stage, by name.
            outputs: Every output of the stage, by name. None may overlap an input.

        Raises:
            InputError: The graph cannot take these shapes, or fails on them.
            MachineError: The machine's memory does not suffice, or its GPU failed.
        """

    def repeatable(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]
    ) -> Callable[[], None]:
        """A `run` of these very arrays that is to be made often.

        Where the backend `replays`, it may be recorded, and cost the host less from then on.
        """
        return partial(self.run, inputs, outputs)

    @abstractmethod
    def close(self) -> None:
        """Gives the stage's weights and working memory back; it cannot run any more."""


class Backend(ABC):
    """Memory and stages of one device.

    Attributes:
        traffic: Counts of what happened since the backend was made.
        replays: Whether `LoadedStage.repeatable` gains anything, so that it is worth while to let
            shapes and addresses repeat.
    """

    replays = False

    def __init__(self) -> None:
        self.traffic = Traffic()

    @abstractmethod
    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Reserves device memory; its contents are arbitrary.

        Raises:
            MachineError: There is not enough.
        """

    def allocate_shared(self, nbytes: int) -> DeviceBuffer:
        """Reserves memory for what host and device exchange often, and little of.

        Where they share memory, `write` and `download` of it need no copy. It may be slow for
        the device to read it more than once.

        Raises:
            MachineError: There is not enough.
        """
        return self.allocate(nbytes)

    def fastest_view(self, bundle: Bundle) -> Bundle:
        """The bundle in the dialect that runs fastest here, its own unless overridden."""
        return bundle

    @abstractmethod
    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """Makes a stage of the bundle ready to run.

        Raises:
            InputError: The graph is damaged, contradicts the manifest or needs a newer library.
            MachineError: The machine's memory does not suffice.
        """

    @abstractmethod
    def copy(self, into: DeviceArray, source: DeviceArray) -> None:
        """Copies within device memory; both have the same shape and dtype, and no overlap."""

    def copy_rows(self, into: ArrayRows, source: ArrayRows) -> None:
        """Copies each array of `source` over the one in its place; no two overlap."""
        for place, array in zip(into.arrays(), source.arrays(), strict=True):
            self.copy(place, array)

    @abstractmethod
    def clear_rows(self, rows: ArrayRows) -> None:
        """Sets all elements to zero."""

    def upload(self, array: npt.NDArray[Any]) -> DeviceArray:
        """Copies a host array to new device memory.

        Raises:
            MachineError: There is not enough memory.
        """
        dtype = array.dtype.name
        into = self.allocate(array.size * item_size(dtype)).array(array.shape, dtype)
        self.write(into, array)
        return into

    def write(self, into: DeviceArray, array: npt.NDArray[Any]) -> None:
        """Copies a host array over a device array of the same shape and dtype.

        Raises:
            ValueError: Shape or dtype differ.
        """
        if array.shape != into.shape or array.dtype.name != into.dtype:
            given, wanted = (array.shape, array.dtype.name), (into.shape, into.dtype)
            raise ValueError(f"cannot write {given} over {wanted}")
        self.traffic.host_to_device_bytes += array.nbytes
        self._write(into, array)

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        """The contents, as a read-only host array; see `download_all`."""
        return self.download_all(array)[0]

    def download_all(self, *arrays: DeviceArray) -> tuple[npt.NDArray[Any], ...]:
        """The contents of several arrays, as read-only host arrays, waiting once for all.

        Where host and device share memory they are views of that memory: copy what is needed
        after the device array is next written.

        Raises:
            MachineError: The GPU failed, now or in what it was asked to do before.
        """
        contents = tuple(self._read(arrays))
        self.traffic.synchronisations += 1
        for host in contents:
            self.traffic.device_to_host_bytes += host.nbytes
            host.flags.writeable = False
        return contents

    def mark(self) -> Any:
        """Marks this moment in the device's work, for `seconds`."""
        return perf_counter()

    def seconds(self, first: Any, last: Any) -> float:
        """What the device took from one mark to another.

        Args:
            first: From `mark`.
            last: From a later `mark`. Waits for it, so ask behind a download.
        """
        return float(last - first)

    def stage_started(self) -> None:
        """Counts the run of a stage; every stage calls it."""
        self.traffic.stage_calls += 1

    @abstractmethod
    def _write(self, into: DeviceArray, array: npt.NDArray[Any]) -> None:
        """`write` after its checks."""

    @abstractmethod
    def _read(self, arrays: Sequence[DeviceArray]) -> Sequence[npt.NDArray[Any]]:
        """`download_all` before it is counted."""
