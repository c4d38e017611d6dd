"""Streams weights from a checkpoint into a stage's data file, one tensor at a time.

One tensor is read and converted while the one before is written, in two buffers that are used
again and again: fresh memory for each would take as long to get as the tensor to transpose.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from atp_export.plan import DTYPE_NAMES
from atp_export.stage_graph import IR_TYPES, StageGraph, StageWeight, WeightPart
from atp_models.architecture import ModelSpec
from atp_models.checkpoint import Checkpoint
from atp_models.text_spec import HEAD
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import FileRecord

# Runtimes map weights into memory; a page is what they can map.
ALIGNMENT = 4096
# The only tensor of which a graph may use some rows alone; it is never transposed.
_CUT = (HEAD,)
# Small enough to be hashed from the processor's cache after it was written.
BLOCK = 1 << 20


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

    def read(self, weight: StageWeight, into: torch.Tensor) -> None:
        """Writes a weight into a tensor of the shape and dtype that the graph uses.

        Raises:
            CheckFailedError: It holds NaN or infinity, in the checkpoint or after conversion
                (FP16 ends at 65504).
        """
        if weight.source == "rope.inv_freq":
            stored = torch.tensor(self.spec.text.rope.inv_freq)
        else:
            stored = self.checkpoint.read(weight.source)
            if weight.source in _CUT:
                stored = stored[weight.first_row : weight.first_row + weight.shape[0]]
            if weight.part is not None:
                stored = _part(stored, weight.part)
        tensor = converted(weight, stored)
        into.copy_(tensor.t() if weight.transposed else tensor)


def converted(weight: StageWeight, stored: torch.Tensor) -> torch.Tensor:
    """A tensor of the checkpoint in the dtype that the graph uses.

    Raises:
        CheckFailedError: It holds NaN or infinity, in the checkpoint or after conversion.
    """
    tensor = stored.to(weight.dtype)
    # NaN and infinity show in the extremes, which take a tenth of the time of `isfinite`.
    if not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):
        raise _not_finite(weight, stored)
    return tensor


def _part(stored: torch.Tensor, part: WeightPart) -> torch.Tensor:
    spans = [stored.narrow(part.axis, first, last - first) for first, last in part.spans]
    return spans[0] if len(spans) == 1 else torch.cat(spans, part.axis)


def _not_finite(weight: StageWeight, stored: torch.Tensor) -> CheckFailedError:
    finite = stored[stored.isfinite()]
    if finite.numel() < stored.numel():
        count = stored.numel() - finite.numel()
        return CheckFailedError(
            f"tensor {weight.source!r} holds NaN or infinity, in {count} of its {stored.numel()} "
            "values",
            why="every answer of the model would be NaN.",
            fix="fetch or convert the checkpoint again; if it was trained so, it diverged.",
        )
    return CheckFailedError(
        f"tensor {weight.source!r} has values beyond FP16, as large as {_largest(finite):.4g}",
        why=f"FP16 ends at {torch.finfo(weight.dtype).max:.0f}; they would turn into infinity.",
        fix="export with --precision fp32.",
    )


def _largest(tensor: torch.Tensor) -> float:
    low, high = tensor.aminmax()
    return max(-low.item(), high.item())


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
    read: Callable[[StageWeight, torch.Tensor], None],
    advance: Callable[[int], None],
    *,
    header: bytes = b"",
) -> FileRecord:
    """Writes a data file and returns its size and hash.

    Args:
        path: The file to make.
        placements: In ascending order of offset.
        read: Writes a weight into a tensor, see `TensorSource.read`.
        advance: Called with the number of bytes that were written.
        header: Bytes before the first weight.

    Raises:
        OSError: The disk is full or the file cannot be written.
        CheckFailedError: See `TensorSource.read`.
    """
    largest = max((placement.weight.nbytes for placement in placements), default=0)
    buffers = [torch.empty(largest, dtype=torch.uint8) for _ in placements[:2]]
    try:
        with (
            path.open("wb") as file,
            ThreadPoolExecutor(max_workers=1) as background,
            _one_thread_for_torch(),
        ):
            output = _HashedFile(file, advance)
            writing = background.submit(output.write, header)
            for index, placement in enumerate(placements):
                weight = placement.weight
                data = buffers[index % 2][: weight.nbytes]
                read(weight, data.view(weight.dtype).view(weight.shape))
                writing.result()
                writing = background.submit(output.write_at, placement.offset, data.numpy().data)
            writing.result()
    except OSError as error:
        # A failed write does not say to which file.
        error.filename = error.filename or str(path)
        raise
    return FileRecord(output.position, output.digest.hexdigest())


@contextmanager
def _one_thread_for_torch() -> Iterator[None]:
    """PyTorch's threads would wait for one another longer than a small tensor takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _HashedFile:
    """Writes and hashes; both let other threads run meanwhile."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance
        self.digest = hashlib.sha256()
        self.position = 0

    def write_at(self, offset: int, data: memoryview) -> None:
        self.write(bytes(offset - self.position))
        for start in range(0, len(data), BLOCK):
            self.write(data[start : start + BLOCK])

    def write(self, block: bytes | memoryview) -> None:
        self._file.write(block)
        self.digest.update(block)
        self.position += len(block)
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
            IR_TYPES[DTYPE_NAMES[weight.dtype]],
            shape=ir.Shape(weight.shape),
            name=weight.name,
        )
        model.graph.register_initializer(value)
    return model
