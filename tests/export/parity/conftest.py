"""The bundles that several of these tests look at, and a way to tamper with them.

Exporting takes seconds, so each of them joins several kinds of LLaVA.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from atp_models.random_configs import tiny_config

Change = Callable[[np.ndarray], np.ndarray]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(scope="session")
def grouped(export_bundle: Any) -> Any:
    """FP32, portable, pruned before layer 3: grouped-query attention."""
    return export_bundle(tiny_config(kv_heads=2), prune_at=(3,))


@pytest.fixture(scope="session")
def one_segment(export_bundle: Any) -> Any:
    """FP32, native, dense: a DINOv2 tower, multi-query attention, YaRN, larger images."""
    config = tiny_config(vision="dinov2", kv_heads=1, rope_scaling=YARN, image_size=48)
    return export_bundle(config, dialect="native", dense=True)


@pytest.fixture(scope="session")
def half_portable(export_bundle: Any) -> Any:
    """FP16, portable, pruned before layer 3: grouped-query, `full` strategy, YaRN."""
    config = tiny_config(kv_heads=2, strategy="full", rope_scaling=YARN)
    return export_bundle(config, precision="fp16", prune_at=(3,))


@pytest.fixture(scope="session")
def half_native(export_bundle: Any) -> Any:
    """FP16, native, pruned before layer 3: a SigLIP tower, grouped-query, tied, biases."""
    config = tiny_config(vision="siglip", kv_heads=2, tied=True, attention_bias=True, mlp_bias=True)
    return export_bundle(config, precision="fp16", dialect="native", prune_at=(3,))


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
