"""A LLaVA whose visual tokens fade where inference drops them, so that thresholds can be learnt.

At a pruning point the mask M of every visual token is predicted; from there on, log of the
product of all M so far is added to the attention scores of its key (ATP-LLaVA, arXiv 2412.00447).
As the temperature of M rises to infinity the network becomes the pruned one of inference.

Transformers' own decoder layers are called one by one, so that adapters, gradient checkpointing
and sharding work as they do elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from atp_models.atp import AtpModules
from atp_models.atp_losses import atp_loss, mean_tokens, module_levels, target_loss
from atp_models.training.masking import ALIVE, point_mask
from atp_models.training.packed_attention import NAME as PACKED
from atp_models.training.packing import PatchGrid, unpack
from atp_models.training.rows import UNSUPERVISED, TokenBatch
from atp_models.training.scoring import (
    BatchScores,
    batch_scores,
    rotated_heads,
    self_scores,
    watch_projections,
)
from atp_models.training.soft_state import SoftOutput, SoftState


@dataclass(frozen=True, eq=False)
class ScoredLayer:
    """A layer whose attention scores tokens, run on one row.

    Attributes:
        own: S_self float32 [tokens]; to be ignored where there is no visual token.
        query: float32 [heads, tokens, head_dim], rotated and scaled.
        key: float32 [kv_heads, tokens, head_dim], rotated.
        change: [], how far its output is from that of the unchanged layer: squared, relative to
            what the layer adds to its input.
    """

    own: Tensor
    query: Tensor
    key: Tensor
    change: Tensor


class SoftDecoder(nn.Module):
    """A LLaVA and its ATP modules, as they are trained.

    Args:
        llava: With attention "atp_packed", "sdpa" or "eager". Which of its weights are trained is
            the caller's business.
        modules: None trains without any pruning.
        grid: Where an image's features lie.
        drop_below: Visual tokens whose mask fell below it are dropped from there on; 0 drops
            none. Their attention is about as small, so 1e-4 changes little, and at high
            temperatures most of the sequence goes.

    Raises:
        ValueError: Another attention, which takes no mask of numbers; or a pruning layer that
            the decoder does not have.
    """

    def __init__(
        self,
        llava: LlavaForConditionalGeneration,
        modules: AtpModules | None,
        grid: PatchGrid,
        *,
        drop_below: float = 0.0,
    ) -> None:
        super().__init__()
        self.llava = llava
        self.atp = modules
        self.drop_below = drop_below
        self.register_buffer("_grid_row", grid.row, persistent=False)
        self.register_buffer("_grid_column", grid.column, persistent=False)
        self._attention: str = llava.model.language_model.config._attn_implementation  # noqa: SLF001
        if self._attention not in (PACKED, "sdpa", "eager"):
            raise ValueError(f"attention {self._attention!r} takes no soft mask")
        depth = len(llava.model.language_model.layers)
        if modules is not None and modules.config.layers and modules.config.layers[-1] >= depth:
            raise ValueError(f"pruning before layer {modules.config.layers[-1]} of {depth}")

    @property
    def grid(self) -> PatchGrid:
        """Where an image's features lie, on this module's device."""
        return PatchGrid(self.get_buffer("_grid_row"), self.get_buffer("_grid_column"))

    def forward(
        self, batch: TokenBatch, temperature: float = math.inf, *, prune: bool = True
    ) -> SoftOutput:
        """Runs a batch.

        Args:
            batch: On this module's device.
            temperature: T of the soft masks; infinite drops tokens exactly as inference does.
            prune: False runs it dense, whatever modules there are.

        Returns:
            Of the batch; where it is packed and pruned, of the rows that `unpack` makes of it,
            since each block keeps other tokens.
        """
        layers = self.atp.config.layers if self.atp is not None and prune else ()
        hidden, state = self._embed(batch), SoftState.begin(batch)
        points = {layer: number for number, layer in enumerate(layers)}
        for number, layer in enumerate(self.llava.model.language_model.layers, start=1):
            if number in points and batch.packed:
                batch, hidden = unpack(batch, hidden)
                state = SoftState.begin(batch)
            if number not in points:
                hidden = self._run(layer, hidden, state)
                continue
            hidden, scores = self._run_scored(layer, hidden, state)
            state = self._masked(points[number], state, scores, batch, temperature)
            least = ALIVE if math.isinf(temperature) else self.drop_below
            state, hidden = state.drop(least, hidden)
        return self._output(batch, state, hidden)

    @torch.no_grad()
    def scores_at(self, batch: TokenBatch, point: int) -> tuple[BatchScores, TokenBatch]:
        """What a pruning point gets to see when those before it drop tokens as inference does.

        Args:
            batch: On this module's device.
            point: Its number.

        Returns:
            The scores, and the tokens that they are of.
        """
        starts = cast("AtpModules", self.atp).config.layers
        hidden, state = self._embed(batch), SoftState.begin(batch)
        for number, layer in enumerate(self.llava.model.language_model.layers, start=1):
            if number not in starts:
                hidden = self._run(layer, hidden, state)
                continue
            hidden, scores = self._run_scored(layer, hidden, state)
            if number == starts[point]:
                break
            state = self._masked(starts.index(number), state, scores, batch, math.inf)
            state, hidden = state.drop(ALIVE, hidden)
        return scores, state.batch

    def scored_layers(
        self,
        batch: TokenBatch,
        layers: Sequence[int],
        unchanged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[ScoredLayer]:
        """Some layers, each with gradients of its own; nothing is pruned.

        Args:
            batch: One row.
            layers: Rising.
            unchanged: Within it the layers have the weights whose hidden states go on.

        Yields:
            What pruning points behind these layers would read.
        """
        with torch.no_grad():
            hidden, state = self._embed(batch), SoftState.begin(batch)
        rotation = self._rotation(hidden, state)
        for number, layer in enumerate(self.llava.model.language_model.layers[: layers[-1] + 1]):
            with torch.no_grad(), unchanged():
                expected = self._run(layer, hidden, state)
            if number in layers:
                attention = layer.self_attn
                with watch_projections(attention) as seen:
                    left = self._run(layer, hidden, state)
                query, key = rotated_heads(attention, seen, rotation)
                change = (left - expected).float().square().sum()
                added = (expected - hidden).float().square().sum()
                query = query * attention.scaling
                own = self_scores(query, key, batch.visual.float())
                yield ScoredLayer(own[0], query[0], key[0], change / added)
            hidden = expected

    def tower_features(self, pixel_values: Tensor) -> Tensor:
        """What the projector is given [images, features, width] for [images, 3, height, width].

        The tower is never trained, so nothing is kept for gradients.
        """
        config, tower = self.llava.config, self.llava.model.vision_tower
        chosen = config.vision_feature_layer
        with torch.no_grad():
            pixels = pixel_values.to(next(tower.parameters()).dtype)
            states = tower(pixels, output_hidden_states=True).hidden_states
            layers = [chosen] if isinstance(chosen, int) else chosen
            features = torch.cat([states[layer] for layer in layers], dim=-1)
        first = 1 if config.vision_feature_select_strategy == "default" else 0
        return features[:, first:]

    def train(self, mode: bool = True) -> SoftDecoder:
        """As any module, but the tower, which is never trained, stays as in evaluation."""
        super().train(mode)
        self.llava.model.vision_tower.eval()
        return self

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recomputes decoder layers in the backward pass; for the options see Transformers."""
        self.llava.activation_checkpointing_enable(**options)

    def _embed(self, batch: TokenBatch) -> Tensor:
        hidden: Tensor = self.llava.get_input_embeddings()(batch.ids)
        visual = batch.visual
        if not bool(visual.any()):
            return hidden
        features = batch.tower_features
        if features is None:
            if batch.pixel_values is None:
                raise ValueError("the batch has visual tokens but no images")
            features = self.tower_features(batch.pixel_values)
        projector: nn.Module = self.llava.model.multi_modal_projector
        projected = projector(features.to(next(projector.parameters()).dtype)).flatten(0, 1)
        chosen = projected[batch.features[visual]].to(hidden.dtype)
        return hidden.masked_scatter(visual.unsqueeze(2), chosen)

    def _run(self, layer: nn.Module, hidden: Tensor, state: SoftState) -> Tensor:
        layout = state.layout if self._attention == PACKED else None
        # Without a mask "sdpa" is causal, by kernels that need no matrix; "eager" is not.
        causal = state.is_causal and self._attention != "eager"
        left: Tensor = layer(
            hidden,
            attention_mask=None if causal or layout else state.bias.to(hidden.dtype),
            packed_layout=layout,
            position_ids=state.batch.positions,
            position_embeddings=self._rotation(hidden, state),
            use_cache=False,
        )
        return left

    def _run_scored(
        self, layer: Any, hidden: Tensor, state: SoftState
    ) -> tuple[Tensor, BatchScores]:
        with watch_projections(layer.self_attn) as seen:
            left = self._run(layer, hidden, state)
        rotation = self._rotation(hidden, state)
        return left, batch_scores(layer.self_attn, seen, rotation, state.batch, state.mask)

    def _rotation(self, hidden: Tensor, state: SoftState) -> tuple[Tensor, Tensor]:
        rotary: Any = self.llava.model.language_model.rotary_emb
        rotation: tuple[Tensor, Tensor] = rotary(hidden, state.batch.positions)
        return rotation

    def _masked(
        self,
        point: int,
        state: SoftState,
        scores: BatchScores,
        batch: TokenBatch,
        temperature: float,
    ) -> SoftState:
        module = cast("AtpModules", self.atp)[point]
        mask = point_mask(
            module, scores, state.batch, state.mask, grid=self.grid, temperature=temperature
        )
        return state.masked(mask, batch.ids.shape[1])

    def _output(self, batch: TokenBatch, state: SoftState, hidden: Tensor) -> SoftOutput:
        supervised = state.batch.targets != UNSUPERVISED
        last: Tensor = self.llava.model.language_model.norm(hidden[supervised])
        logits = self.llava.lm_head(last).float()
        targets = state.batch.targets[supervised]
        lm_loss = F.cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))
        counts = _stacked(state.counts, batch.ids.shape[:1], logits)
        tokens = batch.visual.sum(1)
        mean, atp, target = self._budget(counts, tokens, batch.images)
        loss = lm_loss
        if len(counts):
            config = cast("AtpModules", self.atp).config
            loss = loss + config.lambda_atp * atp + config.lambda_target * target
        if torch.is_grad_enabled() and not loss.requires_grad:
            # Text alone teaches nothing where the decoder is frozen; a trainer differentiates it.
            loss = loss + sum(it.sum() for it in self.parameters() if it.requires_grad) * 0
        masks = _stacked(state.masks, batch.ids.shape, logits)
        return SoftOutput(
            loss, lm_loss, atp, target, counts, mean, masks, logits, targets, batch.images
        )

    def _budget(
        self, counts: Tensor, tokens: Tensor, images: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """N_mean [batch], L_atp [] and L_target [].

        L_target compares the mean of the batch, not every prompt's, so that one prompt may take
        more tokens than another. Images that enter thinned are to keep the same share.
        """
        each = images.clamp_min(1)
        entered, left = tokens / each, counts / each
        if not len(counts):
            return entered, entered.sum() * 0, entered.sum() * 0
        config = cast("AtpModules", self.atp).config
        depth = len(self.llava.model.language_model.layers)
        mean = mean_tokens(left, layers=config.layers, depth=depth, tokens=entered)
        seen = images > 0
        if not bool(seen.any()):
            return mean, mean.sum() * 0, mean.sum() * 0
        levels = module_levels(len(counts))
        atp = atp_loss(left[:, seen], levels=levels, tokens=entered[seen]).mean()
        whole = len(self.grid)
        kept = (mean[seen] / entered[seen]).mean() * whole
        return mean, atp, target_loss(kept, target=config.target_tokens, tokens=whole)


def _stacked(values: tuple[Tensor, ...], shape: torch.Size, like: Tensor) -> Tensor:
    return torch.stack(values) if values else like.new_zeros((0, *shape))
