"""Routed layers of the reference against Transformers' own forward, its layers wrapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.routers import with_routers
from torch import Tensor

from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.reference import LlavaReference
from atp_models.reference_layers import Survivors
from atp_models.routers import read_routers

TOKENS, SKIPPING = 23, {1: [4, 5, 9], 2: [6, 11], 3: [4, 12]}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> LlavaReference:
    source = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(source, tiny_config(kv_heads=2))
    made = with_routers(source, tmp_path_factory.mktemp("routed") / "checkpoint", (1, 2, 3))
    return LlavaReference.load(made, read_routers(Checkpoint.open(made), (1, 3)))


@pytest.fixture(scope="module")
def hidden(reference: LlavaReference) -> Tensor:
    ids = torch.randint(3, 500, (TOKENS,), generator=torch.Generator().manual_seed(3))
    return reference.embed(ids).clone()


def visual() -> Tensor:
    found = torch.zeros(TOKENS, dtype=torch.bool)
    found[3:15] = True
    return found


def through(layer: int, tokens: int = TOKENS) -> Tensor:
    return torch.tensor([at for at in range(tokens) if at not in SKIPPING[layer]])


class Routed(torch.nn.Module):
    """A decoder layer of Transformers that sees some rows, and whose update is weighted."""

    def __init__(self, layer: torch.nn.Module, kept: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.layer, self.kept, self.weights = layer, kept, weights

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        cos, sin = others.pop("position_embeddings")
        others["attention_mask"] = others["attention_mask"][:, :, self.kept][..., self.kept]
        others["position_ids"] = others["position_ids"][:, self.kept]
        rows = hidden_states[:, self.kept]
        left = self.layer(
            rows, position_embeddings=(cos[:, self.kept], sin[:, self.kept]), **others
        )
        update = torch.zeros_like(hidden_states)
        update[:, self.kept] = (left - rows) * self.weights[:, None]
        return hidden_states + update


def test_routed_layers_are_what_transformers_gives_with_them_wrapped(
    reference: LlavaReference, hidden: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = {layer: Survivors.unmerged(through(layer), TOKENS) for layer in (1, 3)}
    step = reference.pruned().forward(hidden, visual(), keep)

    decoder = reference.model.model.language_model
    states = [it.left for it in step.layers]
    for layer in (1, 3):
        scores = states[layer - 1][0].double() @ reference.routers[layer].double()
        weights = torch.where(visual(), scores, 1.0)[through(layer)].float()
        monkeypatch.setitem(
            decoder.layers._modules,
            str(layer),
            Routed(decoder.layers[layer], through(layer), weights),
        )
    with torch.inference_mode():
        found = reference.model(inputs_embeds=hidden, use_cache=False, logits_to_keep=1).logits

    torch.testing.assert_close(step.logits, found[:, -1])


def test_what_skips_a_layer_comes_back_as_it_was(reference: LlavaReference, hidden: Tensor) -> None:
    keep = {layer: Survivors.unmerged(through(layer), TOKENS) for layer in (1, 3)}
    step = reference.pruned().forward(hidden, visual(), keep)
    for layer in (1, 3):
        routed, before = step.layers[layer], step.layers[layer - 1]
        assert routed.left.shape == before.left.shape
        skipped = SKIPPING[layer]
        assert torch.equal(routed.left[:, skipped], before.left[:, skipped])
        assert not torch.isclose(
            routed.left[:, through(layer)], before.left[:, through(layer)]
        ).all()
        assert routed.key.shape[1] == TOKENS - len(skipped)
    assert step.layers[2].key.shape[1] == TOKENS


def test_text_that_follows_goes_through_every_layer(
    reference: LlavaReference, hidden: Tensor
) -> None:
    run = reference.pruned()
    run.forward(hidden, visual(), {1: Survivors.unmerged(through(1), TOKENS)})
    step = run.forward(hidden[:, :2], torch.zeros(2, dtype=torch.bool))
    assert [it.key.shape[1] for it in step.layers] == [2, 2, 2, 2]
    assert step.layers[0].tokens.positions.tolist() == [TOKENS, TOKENS + 1]
