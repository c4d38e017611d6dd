"""Tiny towers, and settings of each policy before the decoder that suit them."""

from __future__ import annotations

from typing import Any

TOWERS: dict[str, dict[str, Any]] = {
    "clip": {},
    "dinov2": {"vision": "dinov2", "feature_layer": -1},
    "siglip": {"vision": "siglip"},
    "full": {"strategy": "full"},
    "no layer": {"feature_layer": [0]},
    "two layers": {"feature_layer": [1, -2]},
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "fastervlm": ("ratio=0.6",),
    "divprune": ("keep=5",),
    "inflection": (),
    "visionzip": ("keep=6", "contextual=2"),
    "prumerge": ("neighbours=4",),
    "prumerge_plus": (),
    "illava_vit": (),
    "elip": (),
    "quecc": ("grid=2",),
}
# The vision stage; what they ask of it has tests of its own.
INSIDE = ("illava_vit", "elip", "quecc")
TRAINED = ("quecc",)  # no checkpoint here holds its weights
