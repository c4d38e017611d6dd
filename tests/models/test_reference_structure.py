"""The simulation against YOPO's rules written out in NumPy, head by head and row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.reference import LlavaReference
from atp_runtime.structure import MASKED, Structure

SIDE, BEFORE, AFTER, DECODED = 4, 3, 5, 2
PATCHES = SIDE * SIDE
TOKENS = BEFORE + PATCHES + AFTER + DECODED
HEADS, WIDTH, LAYERS = 4, 16, 3
KEPT = ("1111", "1010", "0001")
STRUCTURES = {
    "window": Structure(window=3),
    "heads": Structure(heads=KEPT),
    "feed-forward": Structure(ffn_ratio=4),
    "cut": Structure(cut_layer=1, mode=MASKED),
    "all": Structure(window=5, heads=KEPT, ffn_ratio=2, cut_layer=2, mode=MASKED),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> LlavaReference:
    path = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(path, tiny_config(layers=LAYERS))
    return LlavaReference.load(path)


@pytest.fixture(scope="module")
def hidden(reference: LlavaReference) -> Tensor:
    """[1, tokens, hidden] of a prompt with one image and of what is decoded behind it."""
    return reference.embed(torch.arange(10, 10 + TOKENS))


def is_visual(token: int) -> bool:
    return BEFORE <= token < BEFORE + PATCHES


def sees(query: int, key: int, window: int | None) -> bool:
    if window is not None and is_visual(query) and is_visual(key):
        (row, column), (r, c) = (divmod(token - BEFORE, SIDE) for token in (query, key))
        return abs(row - r) <= window // 2 and abs(column - c) <= window // 2
    return key <= query


def simulated(reference: LlavaReference, hidden: Tensor, structure: Structure) -> np.ndarray:
    """Hidden states leaving the last layer, in float64, all tokens at once."""
    x = hidden[0].double().numpy()
    visual = np.array([is_visual(token) for token in range(TOKENS)])
    visible = np.array(
        [[sees(q, k, structure.window) for k in range(TOKENS)] for q in range(TOKENS)]
    )
    for number, layer in enumerate(reference.model.model.language_model.layers):
        weights = {name: value.double().numpy() for name, value in layer.state_dict().items()}
        kept = structure.kept_heads(number, HEADS)
        cut = structure.cut_layer is not None and number >= structure.cut_layer
        normed = rms_norm(x, weights["input_layernorm.weight"])
        query, key, value = (
            (normed @ weights[f"self_attn.{name}_proj.weight"].T).reshape(TOKENS, HEADS, WIDTH)
            for name in "qkv"
        )
        query, key = rotated(query), rotated(key)
        mixed = np.zeros_like(query)
        for head in range(HEADS):
            scores = query[:, head] @ key[:, head].T / np.sqrt(WIDTH)
            exponents = np.where(visible, np.exp(scores), 0.0)
            attention = exponents / exponents.sum(1, keepdims=True)
            if head not in kept or cut:
                attention[:, visual] = 0  # and not renormalised
            mixed[:, head] = attention @ value[:, head]
            if head not in kept:
                mixed[visual, head] = 0
        x = x + mixed.reshape(TOKENS, -1) @ weights["self_attn.o_proj.weight"].T
        normed = rms_norm(x, weights["post_attention_layernorm.weight"])
        gate, up = (normed @ weights[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        inner = gate / (1 + np.exp(-gate)) * up
        inner[visual, inner.shape[1] // structure.ffn_ratio :] = 0
        x = x + inner @ weights["mlp.down_proj.weight"].T
    return x


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) * weight


def rotated(x: np.ndarray) -> np.ndarray:
    frequency = 10000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    angle = np.arange(TOKENS)[:, None, None] * frequency
    first, second = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), -1)


def run(reference: LlavaReference, hidden: Tensor, structure: Structure) -> list[Tensor]:
    """The same through the reference: the prompt, then decode steps."""
    visual = torch.tensor([is_visual(token) for token in range(TOKENS - DECODED)])
    places = torch.full((len(visual), 3), -1)
    patch = torch.arange(PATCHES)
    places[visual] = torch.stack((torch.zeros_like(patch), patch // SIDE, patch % SIDE), 1)
    sequence = reference.pruned({}, structure)
    steps = [sequence.forward(hidden[:, :-DECODED], visual, None, places)]
    steps += [
        sequence.forward(hidden[:, token : token + 1], torch.zeros(1, dtype=torch.bool))
        for token in range(TOKENS - DECODED, TOKENS)
    ]
    return [step.layers[-1].left for step in steps]


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_simulation_follows_the_rules_in_the_prompt_and_while_decoding(
    reference: LlavaReference, hidden: Tensor, name: str
) -> None:
    found = torch.cat(run(reference, hidden, STRUCTURES[name]), 1)[0]

    expected = simulated(reference, hidden, STRUCTURES[name])
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    plain = simulated(reference, hidden, Structure())
    assert np.abs(expected - plain).max() > 1e-3, "the structure changes nothing here"


def test_a_structure_that_spares_nothing_is_the_usual_decoder(
    reference: LlavaReference, hidden: Tensor
) -> None:
    visual = torch.zeros(TOKENS, dtype=torch.bool)

    found = reference.pruned({}, Structure()).forward(hidden, visual)

    torch.testing.assert_close(found.logits, reference.pruned().forward(hidden, visual).logits)
