"""What goes through the soft decoder, and what comes out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from atp_models.training.packed_attention import PackedLayout
from atp_models.training.rows import PREFIX, TokenBatch
from atp_models.training.scoring import HIDDEN_KEY, log_mask


@dataclass(frozen=True, eq=False)
class SoftOutput:
    """What a batch gave.

    Attributes:
        loss: [], L = L_lm + lambda_atp L_atp + lambda_target L_target.
        lm_loss: [], mean cross-entropy of the supervised tokens; 0 if there are none.
        atp_loss: [], before its weight; 0 without modules or without images.
        target_loss: [], likewise.
        counts: [points, batch], visual tokens that leave each point, soft, all images of a row.
        mean_tokens: [batch], N_mean per image; 0 for a row without images.
        masks: [points, batch, tokens], of each token of the batch as it was given, detached.
        logits: float32 [supervised, vocabulary], row by row.
        targets: int64 [supervised].
        images: int64 [batch], of each row.
    """

    loss: Tensor
    lm_loss: Tensor
    atp_loss: Tensor
    target_loss: Tensor
    counts: Tensor
    mean_tokens: Tensor
    masks: Tensor
    logits: Tensor
    targets: Tensor
    images: Tensor


@dataclass(frozen=True, eq=False)
class SoftState:
    """The tokens between two pruning points.

    Attributes:
        batch: Those that are left.
        mask: The product of all M so far [batch, tokens], 1 for text.
        origin: int64 [batch, tokens], each token's place in the batch as it was given.
        counts: By pruning point passed: the sum of the visual tokens' masks [batch].
        masks: By pruning point passed: the mask [batch, tokens as given], 0 for what was
            dropped before; without gradients.
    """

    batch: TokenBatch
    mask: Tensor
    origin: Tensor
    counts: tuple[Tensor, ...] = ()
    masks: tuple[Tensor, ...] = ()

    @classmethod
    def begin(cls, batch: TokenBatch) -> SoftState:
        """Before the first layer."""
        shape, device = batch.ids.shape, batch.ids.device
        places = torch.arange(shape[1], device=device).expand(shape)
        return cls(batch, torch.ones(shape, device=device), places)

    def masked(self, mask: Tensor, tokens: int) -> SoftState:
        """Behind a pruning point.

        Args:
            mask: [batch, tokens left].
            tokens: Of the batch as it was given.
        """
        visual = self.batch.visual
        row, place = visual.nonzero(as_tuple=True)
        whole = torch.zeros(mask.shape[0], tokens, device=mask.device)
        whole[row, self.origin[row, place]] = mask.detach()[row, place]
        return dataclasses.replace(
            self,
            mask=mask,
            counts=(*self.counts, (mask * visual).sum(1)),
            masks=(*self.masks, whole),
        )

    def drop(self, least: float, hidden: Tensor) -> tuple[SoftState, Tensor]:
        """Without the tokens whose mask is below `least`; rows filled up to the longest.

        Args:
            least: At most 1.
            hidden: Their hidden states [batch, tokens, hidden].

        Returns:
            Both, of what is left.
        """
        filled = self.batch.blocks >= 0
        keep = filled & (self.mask >= least)
        if bool((keep == filled).all()):
            return self, hidden
        batch, places, valid = self.batch.only(keep)
        left = dataclasses.replace(
            self,
            batch=batch,
            mask=self.mask.gather(1, places).masked_fill(~valid, 1),
            origin=self.origin.gather(1, places),
        )
        return left, hidden.gather(1, places.unsqueeze(2).expand(-1, -1, hidden.shape[2]))

    @cached_property
    def is_causal(self) -> bool:
        """Whether attention is causal and nothing else.

        Rows are filled up on the right, where causal attention never looks.
        """
        fading = self.mask.requires_grad or bool((self.mask < 1).any())
        return not (fading or self.batch.packed)

    @cached_property
    def layout(self) -> PackedLayout | None:
        """Of a row that is packed and alone; others are masked."""
        alone = self.batch.packed and len(self.batch.blocks) == 1
        return PackedLayout.of(self.batch.blocks[0]) if alone else None

    @cached_property
    def bias(self) -> Tensor:
        """What is added to attention scores, float32 [batch, 1, queries, keys]."""
        blocks = self.batch.blocks
        places = torch.arange(blocks.shape[1], device=blocks.device)
        visible = (places <= places.unsqueeze(1)) & (blocks >= 0).unsqueeze(1)
        visible &= (blocks.unsqueeze(1) == PREFIX) | (blocks.unsqueeze(1) == blocks.unsqueeze(2))
        return torch.where(visible, log_mask(self.mask).unsqueeze(1), HIDDEN_KEY).unsqueeze(1)
