"""Reads tensors that lie in a graph's file of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def mapped(tensor: ir.ExternalTensor) -> npt.NDArray[Any]:
    """The values, mapped from the file: only pages that are read take memory.

    onnx-ir would map the whole file and hold it as long as the graph, and refuses files that have
    a second hard link. The paths are those of a bundle that was checked.
    """
    shape = tuple(int(length) for length in tensor.shape)
    kind = tensor.dtype.numpy()
    if 0 in shape:
        return np.zeros(shape, kind)
    return np.memmap(tensor.path, kind, "r", tensor.offset or 0, shape)
