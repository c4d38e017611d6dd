"""VideoLLM-MoD's routers (arXiv 2408.16730): what a checkpoint has of them beside its layers.

A routed layer has one, `model.language_model.layers.{l}.router.weight` of shape [1, hidden] (or as
any layout of LLaVA checkpoints names what belongs to a layer): a visual token's score is its
product with the hidden state that enters the layer, without a bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from atp_models.checkpoint import Checkpoint, misfit
from atp_runtime.errors import InputError

_ROUTER = re.compile(r"model\.language_model\.layers\.(?P<layer>\d+)\.router\.weight")


def router_name(layer: int) -> str:
    """The canonical name of a layer's router."""
    return f"model.language_model.layers.{layer}.router.weight"


def routed_layers(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The layers that a checkpoint has routers for, ascending."""
    found = (_ROUTER.fullmatch(name) for name in checkpoint.tensors)
    return tuple(sorted(int(match["layer"]) for match in found if match))


def check_routers(checkpoint: Checkpoint, layers: Iterable[int], hidden: int) -> None:
    """Checks, from the headers alone, that the layers have routers.

    Args:
        checkpoint: An opened checkpoint.
        layers: Those that are routed.
        hidden: The width of hidden states.

    Raises:
        InputError: A router is missing, of another shape or not of a floating type.
    """
    for layer in layers:
        name = router_name(layer)
        found = misfit(checkpoint.tensors.get(name), (1, hidden))
        if found is None:
            continue
        raise InputError(
            f"{checkpoint.path}: {name} {found}",
            why=f"layer {layer} is to be routed, and its router says which tokens go through it.",
            fix="give a checkpoint trained with routers in these layers, or name others, or choose "
            "a policy that needs no training.",
        )


def read_routers(checkpoint: Checkpoint, layers: Iterable[int]) -> dict[int, Tensor]:
    """The routers of some layers, float32 [hidden] each."""
    return {
        layer: checkpoint.read(router_name(layer)).to(torch.float32).flatten() for layer in layers
    }
