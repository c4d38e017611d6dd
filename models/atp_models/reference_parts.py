"""Single parts of the network in PyTorch, for machines that cannot hold all of it.

As in `atp_models.reference`, the modules are Transformers' own, in float32 on the CPU; here a
part is filled from the checkpoint when it is asked for and freed with its last reference.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from atp_models.architecture import ModelSpec
from atp_models.checkpoint import Checkpoint
from atp_models.quantised.reference import round_inputs
from atp_models.reference_compressor import Compressor
from atp_models.reference_layers import ATTENTION
from atp_models.reference_vision import TowerMerged, VisionStep, see
from atp_models.routers import read_routers
from atp_models.text_spec import EMBEDDING, HEAD

_TOWER = "model.vision_tower."
_PROJECTOR = "model.multi_modal_projector."


class ReferenceParts:
    """Builds parts of a checkpoint's network.

    Args:
        checkpoint: Opened, its tensors checked.
        spec: Its architecture.
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._config = spec.transformers_config()
        self._config._attn_implementation = ATTENTION  # noqa: SLF001 - how Transformers wants it
        with torch.device("meta"):
            self._skeleton: Any = LlavaForConditionalGeneration(self._config).eval()

    def layer(self, number: int) -> nn.Module:
        """A decoder layer."""
        layer = copy.deepcopy(self._skeleton.model.language_model.layers[number])
        return self._filled(layer, f"model.language_model.layers.{number}.")

    @torch.inference_mode()
    def router_scores(self, layer: int, hidden: Tensor) -> Tensor:
        """What the router of a layer says of [1, tokens, hidden]: [tokens]."""
        return hidden[0] @ read_routers(self._checkpoint, (layer,))[layer]

    def rotary(self) -> nn.Module:
        """The decoder's rotary embedding."""
        kind = type(self._skeleton.model.language_model.rotary_emb)
        rotary: nn.Module = kind(self._config.text_config)
        return rotary

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the token embedding, [1, tokens, hidden], for ids int64 [tokens]."""
        return self._checkpoint.read(EMBEDDING)[ids].float().unsqueeze(0)

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] of every position of [1, tokens, hidden]."""
        norm = copy.deepcopy(self._skeleton.model.language_model.norm)
        last = self._filled(norm, "model.language_model.norm.")(hidden[0])
        name = EMBEDDING if self._spec.text.tied_embeddings else HEAD
        return nn.functional.linear(last, self._checkpoint.read(name).float())

    def see(
        self,
        pixel_values: Tensor,
        merged: Sequence[TowerMerged] = (),
        told: Tensor | None = None,
    ) -> VisionStep:
        """Runs the vision tower and the projector, see `LlavaReference.see`."""
        model = copy.deepcopy(self._skeleton.model)
        model.vision_tower = self._tower(self._config.vision_config)
        model.multi_modal_projector = self._filled(model.multi_modal_projector, _PROJECTOR)
        compress = None
        if told is not None:
            compress = partial(Compressor.read(self._checkpoint, self._spec.vision).of, text=told)
        return see(model, pixel_values, merged, compress)

    @torch.inference_mode()
    def tower_states(self, pixel_values: Tensor, layers: int) -> tuple[Tensor, ...]:
        """Hidden states entering the tower's first layers, and those leaving the last of them.

        Args:
            pixel_values: [images, 3, height, width].
            layers: How many layers are built.
        """
        config = copy.deepcopy(self._config.vision_config)
        config.num_hidden_layers = layers
        return tuple(self._tower(config)(pixel_values, output_hidden_states=True).hidden_states)

    def _tower(self, config: Any) -> nn.Module:
        # Not on "meta": some towers have buffers that no checkpoint holds.
        with no_init_weights():
            tower = AutoModel.from_config(config, dtype=torch.float32)
        return self._filled(tower.eval(), _TOWER)

    def _filled(self, module: nn.Module, prefix: str) -> nn.Module:
        tensors = self._checkpoint.tensors
        state = {
            name: self._checkpoint.read(prefix + name).float()
            for name in module.state_dict()
            if prefix + name in tensors
        }
        # What a checkpoint may lack is never read, see `ModelSpec.tensor_shapes`.
        module.load_state_dict(state, strict=False, assign=True)
        round_inputs(module, self._checkpoint, prefix)
        return module
