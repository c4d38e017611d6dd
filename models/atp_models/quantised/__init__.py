"""Checkpoints whose linear layers other tools have quantised, read as they lie in the files.

Accepted is what AutoAWQ, AutoGPTQ and GPTQModel, NVIDIA ModelOpt and compressed-tensors document;
everything else is refused by name. Each tool has a module of its own, `methods` chooses among them.
"""

from __future__ import annotations

from atp_models.quantised.methods import find_quantised
from atp_models.quantised.packed_layer import PackedLayer
from atp_models.quantised.weight import QuantisedWeight

__all__ = ["PackedLayer", "QuantisedWeight", "find_quantised"]
