"""Memory that a bundle needs where it runs; arithmetic on its manifest and its engines' records.

Predictions, of which none was measured on a Jetson.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from atp_export.engines.memory import RUNTIME_BYTES
from atp_runtime.engine_set import Engine
from atp_runtime.manifest import Manifest
from atp_runtime.tensor_names import cache_names

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
    tokens = min(manifest.text.max_positions, manifest.vision.tokens + _FURTHER_TOKENS)
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


def _width(manifest: Manifest) -> int:
    """Bytes of one cached value."""
    first = cache_names(0)[0]
    specs = (spec for stage in manifest.segments for spec in stage.inputs)
    dtype = next(spec.dtype for spec in specs if spec.name == first)
    match = re.search(r"\d+$", dtype)
    if not match:
        raise ValueError(f"the caches' dtype {dtype} names no width")
    return int(match[0]) // 8
