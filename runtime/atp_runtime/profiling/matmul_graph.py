"""An ONNX graph of one matrix product, so that a machine's ceiling is measured by what runs models.

Written by hand, field by field, because the device has no package that writes ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_IR_VERSION, _OPSET = 8, 13
_FLOAT = 1  # TensorProto.DataType


def matmul_graph(weight: npt.NDArray[np.float32]) -> bytes:
    """The model `y = x @ weight`, x float32 [rows, in].

    Args:
        weight: float32 [in, out].
    """
    node = _text(1, "x") + _text(1, "weight") + _text(2, "y") + _text(4, "MatMul")
    initialiser = (
        b"".join(_number(1, length) for length in weight.shape)
        + _number(2, _FLOAT)
        + _text(8, "weight")
        + _bytes(9, weight.tobytes())
    )
    graph = (
        _bytes(1, node)
        + _text(2, "matmul")
        + _bytes(5, initialiser)
        + _bytes(11, _tensor("x", weight.shape[0]))
        + _bytes(12, _tensor("y", weight.shape[1]))
    )
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, _OPSET))


def _tensor(name: str, width: int) -> bytes:
    """A ValueInfoProto: float32 [rows, width]."""
    shape = _bytes(1, _text(2, "rows")) + _bytes(1, _number(1, width))
    kind = _number(1, _FLOAT) + _bytes(2, shape)
    return _text(1, name) + _bytes(2, _bytes(1, kind))


def _number(field: int, value: int) -> bytes:
    return bytes([*_varint(field << 3), *_varint(value)])


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([*_varint(field << 3 | 2), *_varint(len(value))]) + value


def _varint(value: int) -> Iterator[int]:
    """Seven bits to a byte, the lowest first; all but the last have the eighth set."""
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
