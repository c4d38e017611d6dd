"""Bundles that were tampered with, to see parity fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

Weights = np.ndarray
Change = Callable[[Weights], Weights]


@pytest.fixture
def tamper(tmp_path: Path) -> Callable[[Path, str, Change], Path]:
    """Copies a bundle and changes one weight of it, found by its checkpoint's name."""

    def changed(bundle: Path, tensor: str, change: Change) -> Path:
        copy = tmp_path / "tampered"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(bundle, copy)
        for graph in sorted((copy / "onnx").glob("*.onnx")):
            for weight in onnx.load(graph, load_external_data=False).graph.initializer:
                if weight.name == tensor:
                    place = {entry.key: entry.value for entry in weight.external_data}
                    half = weight.data_type == onnx.TensorProto.FLOAT16
                    values = np.memmap(
                        copy / "onnx" / place["location"],
                        dtype=np.float16 if half else np.float32,
                        mode="r+",
                        offset=int(place["offset"]),
                        shape=tuple(weight.dims),
                    )
                    values[:] = change(np.array(values, dtype=np.float32)).astype(values.dtype)
                    values.flush()
                    return copy
        raise AssertionError(f"no weight {tensor}")

    return changed
