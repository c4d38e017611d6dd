"""Memory that a bundle needs where it runs, and while its engines are built.

Arithmetic on its manifest and its engines' records; nothing of it was measured on a Jetson.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from atp_runtime.engine_set import Engine
from atp_runtime.manifest import Manifest, Stage

# TensorRT's documentation and field reports: building takes 3 to 4 times the parameter bytes.
BUILD_FACTOR = 4
# Python, NumPy, ONNX Runtime or TensorRT and its CUDA context, without any weight.
RUNTIME_BYTES = 600 * 2**20
# What the system keeps of a module's unified memory: kernel, services, no desktop.
SYSTEM_BYTES = 1200 * 2**20
# A photo and so many further tokens: question, answer and the turns before.
_FURTHER_TOKENS = 1024


@dataclass(frozen=True)
class RunNeeds:
    """Bytes of memory.

    Attributes:
        weights: Of all stages. The token table is among them only if the head uses it: else it
            is mapped, and read row by row.
        caches: Keys and values of `tokens` tokens, none of them pruned.
        scratch: What the engines need to work; predicted for the widest moment of a layer where
            there are no engines.
        runtime: Python, its packages and TensorRT or ONNX Runtime.
        tokens: What `caches` and a predicted `scratch` are for.
    """

    weights: int
    caches: int
    scratch: int
    runtime: int
    tokens: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.caches + self.scratch + self.runtime


def run_needs(manifest: Manifest, engines: Sequence[Engine] = ()) -> RunNeeds:
    """What running a bundle needs.

    Args:
        manifest: The bundle's.
        engines: Those it will run with, if all stages have one; else its own graphs are counted.
    """
    tokens = min(manifest.text.max_positions, manifest.vision.most_tokens + _FURTHER_TOKENS)
    if engines:
        weights = sum(engine.record.bytes for engine in engines)
        scratch = max(engine.scratch_bytes for engine in engines)
    else:
        names = {name for stage in manifest.stages for name in stage.data}
        weights = sum(manifest.files[name].bytes for name in names)
        scratch = _widest_moment(manifest, tokens)
    return RunNeeds(weights, _cache_bytes(manifest, tokens), scratch, RUNTIME_BYTES, tokens)


def _cache_bytes(manifest: Manifest, tokens: int) -> int:
    text = manifest.text
    values = 2 * text.layers * text.kv_heads * text.head_dim
    return values * tokens * _width(manifest)


def _widest_moment(manifest: Manifest, tokens: int) -> int:
    """Attention scores, the feed-forward's products and the hidden states beside them."""
    text, width = manifest.text, _width(manifest)
    scores = 2 * text.heads * tokens * tokens * 4
    feed_forward = 3 * tokens * text.intermediate * width
    return scores + feed_forward + 4 * tokens * text.hidden * width


def build_bytes(weights: int) -> int:
    """Predicted peak of building one engine with that many bytes of weights."""
    return BUILD_FACTOR * weights + RUNTIME_BYTES


def largest_build(manifest: Manifest) -> int:
    """Predicted peak of building all engines: they are built one after the other."""
    return max(build_bytes(weight_bytes(manifest, stage)) for stage in manifest.stages)


def weight_bytes(manifest: Manifest, stage: Stage) -> int:
    """Bytes of the files with the stage's weights."""
    return sum(manifest.files[name].bytes for name in stage.data)


def _width(manifest: Manifest) -> int:
    """Bytes of one cached value; the doctor asks where no NumPy is."""
    match = re.search(r"\d+$", manifest.hidden_dtype)
    if not match:
        raise ValueError(f"the dtype {manifest.hidden_dtype} names no width")
    return int(match[0]) // 8
