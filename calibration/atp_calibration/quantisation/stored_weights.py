"""The numbers that stand for a weight: INT8 per output channel, INT4 per block of inputs.

Symmetric, as TensorRT demands.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LARGEST_INT8 = 127
LARGEST_INT4, SMALLEST_INT4 = 7, -8
_TINY = 1e-30
"""Below this a step is no normal number, and what has such steps is nothing."""
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)

Int8 = npt.NDArray[np.int8]
Float32 = npt.NDArray[np.float32]


def quantise_weight(weight: npt.NDArray[np.floating]) -> tuple[Int8, Float32]:
    """Symmetric INT8 per output channel.

    Args:
        weight: [in, out].

    Returns:
        int8 [in, out] and float32 scales [out].
    """
    largest = np.abs(weight).max(axis=0).astype(np.float32)
    scale = np.where(largest > _TINY, largest / LARGEST_INT8, np.float32(1))
    rounded = np.rint(weight.astype(np.float32) / scale)
    return np.clip(rounded, -LARGEST_INT8, LARGEST_INT8).astype(np.int8), scale


def quantise_blocks(
    weight: npt.NDArray[np.floating],
    block: int,
    importance: npt.NDArray[np.floating] | None = None,
) -> tuple[Int8, Float32]:
    """Symmetric INT4 per block of inputs and output channel.

    Args:
        weight: [in, out]; in is a multiple of the block.
        block: Inputs that share a scale.
        importance: What an error of each input costs, [in]: the mean square of its activations.
            With it, each block is clipped where that costs least.

    Returns:
        int8 [in, out] of -8 to 7, and float32 scales [in / block, out].
    """
    inputs, outputs = weight.shape
    blocks = weight.astype(np.float32).reshape(inputs // block, block, outputs)
    largest = np.abs(blocks).max(axis=1)
    whole = np.where(largest > _TINY, largest / LARGEST_INT4, np.float32(1))
    if importance is None:
        return _round(blocks, whole).astype(np.int8).reshape(weight.shape), whole
    costs = importance.astype(np.float32).reshape(inputs // block, block, 1)
    best, least = whole, np.full(whole.shape, np.inf, np.float32)
    for shrink in _SHRINKS:
        scale = whole * np.float32(shrink)
        error = blocks - _round(blocks, scale) * scale[:, None]
        cost = (costs * np.square(error)).sum(axis=1)
        best, least = np.where(cost < least, scale, best), np.minimum(cost, least)
    return _round(blocks, best).astype(np.int8).reshape(weight.shape), best


def dequantise_blocks(values: Int8, scales: Float32) -> Float32:
    """What INT4 values stand for: float32 [in, out]."""
    blocks = values.reshape(len(scales), -1, values.shape[1]).astype(np.float32)
    restored: Float32 = (blocks * scales[:, None]).reshape(values.shape)
    return restored


def pack(values: Int8) -> npt.NDArray[np.uint8]:
    """ONNX's INT4: two values to a byte, the first in its lower half."""
    flat: npt.NDArray[np.uint8] = values.reshape(-1).view(np.uint8) & np.uint8(0xF)
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    packed: npt.NDArray[np.uint8] = flat[::2] | (flat[1::2] << np.uint8(4))
    return packed


def _round(blocks: Float32, scale: Float32) -> Float32:
    steps: Float32 = np.clip(np.rint(blocks / scale[:, None]), SMALLEST_INT4, LARGEST_INT4)
    return steps
