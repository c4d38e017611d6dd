"""Names of graph inputs and outputs that more than one room speaks of."""

from __future__ import annotations

SCORES = ("scores.self", "scores.cross")
"""What a segment before a pruning point gives for each token."""


IMAGE_FEATURES = "image_features"
"""What the decoder gets of images, after the projector."""
PATCH_FEATURES = "patch_features"
"""What the projector gets, where it is a stage of its own."""
CLASS_ATTENTION = "scores.class"
"""The attention that a tower's class token pays to each patch, heads averaged."""

CLASS_SIMILARITY = "scores.similarity"
"""The cosine of a tower's class token, as features are taken, with each patch."""
KEYS = "keys"
"""Attention's key of each patch, heads side by side."""
MEAN_KEYS = "keys.mean"
"""Attention's key of each patch, heads averaged."""


def cache_names(layer: int) -> tuple[str, str, str, str]:
    """Names of a layer's past key, past value, new key and new value, by global index."""
    past, present = f"past_key_values.{layer}", f"present.{layer}"
    return f"{past}.key", f"{past}.value", f"{present}.key", f"{present}.value"
