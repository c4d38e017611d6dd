"""Names of graph inputs and outputs that more than one room speaks of."""

from __future__ import annotations

SCORES = ("scores.self", "scores.cross")
"""What a segment before a pruning point gives for each token."""

ROW_SCORES = "scores.rows"
"""What it gives besides before a point that has `rows`: float32 [rows, kept], the attention that
each of the asked tokens pays to each token, heads averaged."""

ROWS = ("other_rows", "row_slots")
"""What a segment is told where visual tokens are spared work, see `StructureRows`."""

WINDOW = ("window_queries", "window_keys", "window_cells")
"""What it is told besides where they see their neighbours alone."""

PLACES = "visual_places"
"""What it is told instead where the work is done and hidden: int64 [kept, 3], the image, row and
column of each token, -1 for what has no place."""

ROW_AXES = ("others", "visual", "blocks")
"""The axes of these: see `StructureRows`."""

MERGE_WEIGHTS = "merge_weights"
"""What a segment behind a point that merges is told: float32 [merged, tokens], the share of each
token of the segment before in each merged one. `keep_indices` from `tokens` on mean these."""

ROUTER_SCORES = "scores.router"
"""What a segment before a routed layer gives for each token instead of `SCORES`."""

ROUTE_WEIGHTS = "route_weights"
"""What a routed layer is told: float32 [kept], how much of its update each token gets that goes
through it."""

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
TEXT_MEAN = "text_mean"
"""What a vision stage that asks for the question is told: float32 [1, hidden], the mean of its
words' embeddings, or zeros."""
TOWER_KEPT = "tower.kept"
"""The patches that stayed at each merge inside a tower, see `TowerMerge`."""


PAST, PRESENT = "past_key_values.", "present."
"""How the names of cached keys and values begin, and those of new ones."""


def cache_names(layer: int) -> tuple[str, str, str, str]:
    """Names of a layer's past key, past value, new key and new value, by global index."""
    past, present = f"{PAST}{layer}", f"{PRESENT}{layer}"
    return f"{past}.key", f"{past}.value", f"{present}.key", f"{present}.value"
