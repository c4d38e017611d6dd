"""Streams weights from a checkpoint into a stage's data file, one tensor at a time.

Peak memory is two tensors: one being read and converted while the one before is written.
"""

from __future__ import annotations

import hashlib
import io
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from atp_export.compose import IR_TYPES, StageGraph, StageWeight
from atp_models.architecture import ModelSpec
from atp_models.checkpoint import Checkpoint
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import FileRecord

# Runtimes map weights into memory; a page is what they can map.
ALIGNMENT = 4096
BLOCK = 1 << 24


@dataclass(frozen=True)
class Placement:
    """Where a weight lies in its data file, in bytes."""

    weight: StageWeight
    offset: int


@dataclass(frozen=True)
class TensorSource:
    """Reads the tensors that stages name: the checkpoint's, and those the spec implies."""

    checkpoint: Checkpoint
    spec: ModelSpec

    def read(self, weight: StageWeight) -> torch.Tensor:
        """The weight as the graph uses it: shape, dtype, contiguous.

        Raises:
            CheckFailedError: A value does not fit the precision (beyond 65504 in FP16).
        """
        if weight.source == "rope.inv_freq":
            tensor = torch.tensor(self.spec.text.rope.inv_freq)
        else:
            tensor = self.checkpoint.read(weight.source)
        converted = tensor.to(weight.dtype)
        if tensor.dtype != weight.dtype and not bool(torch.isfinite(converted).all()):
            raise CheckFailedError(
                f"tensor {weight.source!r} has values that {weight.dtype} cannot hold",
                why=f"its largest magnitude is {tensor.abs().max().item():.4g}.",
                fix="export with --precision fp32, or repair the checkpoint if it holds NaN.",
            )
        return (converted.t() if weight.transposed else converted).contiguous()


def place(weights: Sequence[StageWeight]) -> tuple[tuple[Placement, ...], int]:
    """Lays weights out one after the other, page-aligned; also returns the file's size."""
    placements, end = [], 0
    for weight in weights:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        placements.append(Placement(weight, offset))
        end = offset + weight.nbytes
    return tuple(placements), end


def write_weights(
    path: Path,
    placements: Sequence[Placement],
    read: Callable[[StageWeight], torch.Tensor],
    advance: Callable[[int], None],
    *,
    header: bytes = b"",
) -> FileRecord:
    """Writes a data file and returns its size and hash.

    Args:
        path: The file to make.
        placements: In ascending order of offset.
        read: Delivers a weight as the graph uses it.
        advance: Called with the number of bytes that were written.
        header: Bytes before the first weight.

    Raises:
        OSError: The disk is full or the file cannot be written.
        CheckFailedError: See `TensorSource.read`.
    """
    with path.open("wb") as file, _BackgroundWriter(file, advance, header) as writer:
        for placement in placements:
            writer.put(placement.offset, read(placement.weight))
    return writer.record()


class _BackgroundWriter:
    """Writes and hashes in a thread: both let the reading thread run."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None], header: bytes) -> None:
        self._file = file
        self._advance = advance
        self._digest = hashlib.sha256()
        self._position = 0
        self._error: BaseException | None = None
        self._queue: queue.Queue[tuple[int, torch.Tensor] | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._emit(memoryview(header))

    def __enter__(self) -> _BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._raise_error()

    def put(self, offset: int, tensor: torch.Tensor) -> None:
        self._raise_error()
        self._queue.put((offset, tensor))

    def record(self) -> FileRecord:
        return FileRecord(bytes=self._position, sha256=self._digest.hexdigest())

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._write(*item)
                except BaseException as error:  # raised again by the reading thread
                    self._error = error

    def _write(self, offset: int, tensor: torch.Tensor) -> None:
        self._emit(memoryview(bytes(offset - self._position)))
        # NumPy has no view of every dtype, but bytes are bytes.
        data = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
        for start in range(0, len(data), BLOCK):
            self._emit(data[start : start + BLOCK])

    def _emit(self, block: memoryview) -> None:
        self._file.write(block)
        self._digest.update(block)
        self._position += len(block)
        self._advance(len(block))


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What stands before the bytes of an array in a `.npy` file; a multiple of 64 bytes."""
    stream = io.BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def attach(graph: StageGraph, locations: Sequence[tuple[str, int]]) -> ir.Model:
    """A copy of the stage's model whose weights refer to bytes in files beside it.

    Args:
        graph: A composed stage.
        locations: For each of its weights the file's name and the offset in bytes.
    """
    model = graph.model.clone()
    values = {value.name: value for value in model.graph.inputs}
    for weight, (location, offset) in zip(graph.weights, locations, strict=True):
        value = values[weight.name]
        model.graph.inputs.remove(value)
        value.const_value = ir.ExternalTensor(
            location,
            offset,
            weight.nbytes,
            IR_TYPES[weight.dtype],
            shape=ir.Shape(weight.shape),
            name=weight.name,
        )
        model.graph.register_initializer(value)
    return model
