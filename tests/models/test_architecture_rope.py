"""Rotary embeddings, read from configs."""

import math
from pathlib import Path

import pytest
import torch
from tests.models.specifications import changed, read
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from atp_models.random_configs import tiny_config

ROPES = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
}


@pytest.mark.parametrize("kind", ROPES)
def test_rope_gives_transformers_angles_up_to_the_last_position(kind: str, tmp_path: Path) -> None:
    config = tiny_config(rope_scaling=ROPES[kind])

    text = read(tmp_path, config).text

    positions = torch.tensor([[0, 1, 7, 500, text.max_positions - 1]])
    cos, sin = LlamaRotaryEmbedding(config.text_config)(torch.zeros(1), positions)
    angles = positions[0, :, None] * torch.tensor(text.rope.inv_freq)
    assert text.rope.kind == kind
    for found, expected in ((angles.cos(), cos), (angles.sin(), sin)):
        both_halves = torch.cat((found, found), dim=-1) * text.rope.attention_scaling
        torch.testing.assert_close(both_halves, expected[0], rtol=0, atol=1e-6)


def test_default_rope_is_a_geometric_series(tmp_path: Path) -> None:
    rope = read(tmp_path, changed("text_config", rope_parameters={"rope_theta": 5e5})).text.rope

    assert rope.theta == 5e5
    assert rope.inv_freq == pytest.approx([5e5 ** (-i / 8) for i in range(8)], rel=1e-6)
    assert rope.attention_scaling == 1.0


def test_linear_rope_divides_the_frequencies(tmp_path: Path) -> None:
    rope = read(tmp_path, tiny_config(rope_scaling=ROPES["linear"])).text.rope

    assert rope.inv_freq == pytest.approx([1e4 ** (-i / 8) / 4 for i in range(8)], rel=1e-6)


def test_dynamic_rope_is_the_default_within_its_positions(tmp_path: Path) -> None:
    rope = read(tmp_path, tiny_config(rope_scaling=ROPES["dynamic"])).text.rope

    assert rope.inv_freq == pytest.approx([1e4 ** (-i / 8) for i in range(8)], rel=1e-6)


def test_yarn_scales_cos_and_sin(tmp_path: Path) -> None:
    rope = read(tmp_path, tiny_config(rope_scaling=ROPES["yarn"])).text.rope

    assert rope.attention_scaling == pytest.approx(0.1 * math.log(4.0) + 1.0)


def test_rope_fields_of_transformers_4_are_understood(tmp_path: Path) -> None:
    config = changed("text_config", rope_theta=2e4, rope_scaling={"type": "linear", "factor": 2.0})
    del config["text_config"]["rope_parameters"]

    rope = read(tmp_path, config).text.rope

    assert (rope.kind, rope.theta) == ("linear", 2e4)
    assert rope.inv_freq[0] == 0.5
