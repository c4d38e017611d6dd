"""Makes PyTorch modules round what a quantised checkpoint rounds besides its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from atp_models.quantised.weight import QuantisedWeight

if TYPE_CHECKING:
    from atp_models.checkpoint import Checkpoint


def round_inputs(module: nn.Module, checkpoint: Checkpoint, prefix: str = "") -> None:
    """Makes linear layers round their inputs to INT8 where the checkpoint's tool does.

    Args:
        module: The network or a part of it, its weights already read.
        checkpoint: What they were read from.
        prefix: Of the module's names in the checkpoint.
    """
    for name, layer in module.named_modules():
        packed = checkpoint.quantised.get(f"{prefix}{name}.weight")
        if packed is not None and packed.activations:
            layer.register_forward_pre_hook(_rounding(checkpoint.read_quantised(packed.weight)))


def _rounding(weight: QuantisedWeight) -> Callable[[nn.Module, Any], tuple[Tensor]]:
    step = weight.input_step()

    def round_first(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return ((inputs[0] / step).round().clamp(-128, 127) * step,)

    return round_first
