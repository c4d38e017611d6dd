"""The kinds of LLaVA that are supported, as options of `tiny_config`."""

from __future__ import annotations

from typing import Any

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LINEAR = {"rope_type": "linear", "factor": 2.0}

KINDS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped-query": {"kv_heads": 2},
    "multi-query": {"kv_heads": 1},
    "tied": {"tied": True},
    "full strategy": {"strategy": "full"},
    "siglip": {"vision": "siglip"},
    "dinov2": {"vision": "dinov2"},
    "linear rope": {"rope_scaling": _LINEAR},
    "llama3 rope": {"rope_scaling": _LLAMA3},
    "yarn rope": {"rope_scaling": _YARN},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "several feature layers": {"feature_layer": [1, -2]},
    "last feature layer": {"feature_layer": -1},
    "no tower layer": {"feature_layer": [0]},
    "other image size": {"image_size": 48},
    "more layers": {"layers": 7},
}
