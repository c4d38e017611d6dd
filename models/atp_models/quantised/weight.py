"""The common form of a quantised weight, whichever tool it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """The weight of a linear layer as integers and scales.

    The layer computes x' @ W with x' = (x * multiplier)[order], and of each block of rows
    W = (values - zeros) * scales.

    Attributes:
        bits: 4, then values are -8 to 7; or 8.
        values: int8 [in, out].
        scales: As stored, [blocks, out]; a block is in / blocks rows.
        zeros: What stands for zero, int8 [blocks, out] of -8 to 8; None where 0 does.
        order: Which channel of the input each row reads, int64 [in]; None for its own.
        multiplier: Of the input's channels, [in]; None for 1.
        activation_scale: What 1 stands for in the input x' once that is INT8; None where it is
            not quantised.
    """

    bits: int
    values: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    order: Tensor | None = None
    multiplier: Tensor | None = None
    activation_scale: float | None = None

    @property
    def block_size(self) -> int:
        """Inputs that share a scale."""
        return len(self.values) // len(self.scales)

    def dequantised(self) -> Tensor:
        """What multiplies the input itself: float32 [out, in].

        Exact if the scales have 16 bits and there is no multiplier: the difference of two
        integers takes 5 bits, FP16 has 11, float32 24.
        """
        inputs, outputs = self.values.shape
        rows = self.values.float().view(len(self.scales), self.block_size, outputs)
        if self.zeros is not None:
            rows -= self.zeros.float().unsqueeze(1)
        rows *= self.scales.float().unsqueeze(1)
        weight = rows.view(inputs, outputs)
        if self.order is not None:
            weight = torch.empty_like(weight).index_copy_(0, self.order, weight)
        if self.multiplier is not None:
            weight = weight * self.multiplier.float().unsqueeze(1)
        return weight.t().contiguous()

    def input_step(self) -> Tensor:
        """What 1 stands for in the input itself, if that is INT8: float32 [in] or []."""
        step = torch.tensor(self.activation_scale, dtype=torch.float32)
        return step if self.multiplier is None else step / self.multiplier.float()
