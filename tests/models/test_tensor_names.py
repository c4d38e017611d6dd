import pytest
import torch
from transformers import LlavaForConditionalGeneration

from atp_models.random_configs import tiny_config
from atp_models.tensor_names import Part, canonical_parts, hub_name


def names_of(family: str) -> list[str]:
    with torch.device("meta"):
        return list(LlavaForConditionalGeneration(tiny_config(vision=family)).state_dict())


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        (
            "language_model.model.layers.3.mlp.up_proj.weight",
            "model.language_model.layers.3.mlp.up_proj.weight",
        ),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        (
            "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.bias",
            "model.vision_tower.encoder.layers.0.self_attn.q_proj.bias",
        ),
        (
            "model.vision_tower.vision_model.post_layernorm.weight",
            "model.vision_tower.post_layernorm.weight",
        ),
        (
            "vision_tower.encoder.layer.1.attention.attention.query.weight",
            "model.vision_tower.encoder.layer.1.attention.q_proj.weight",
        ),
        (
            "vision_tower.encoder.layer.1.attention.output.dense.bias",
            "model.vision_tower.encoder.layer.1.attention.o_proj.bias",
        ),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("quecc.keys.norm.bias", "model.quecc.keys.norm.bias"),
    ],
)
def test_stored_name_is_mapped_to_the_canonical_one(stored: str, canonical: str) -> None:
    assert canonical_parts(stored) == (Part(canonical),)


def test_fused_swiglu_is_two_canonical_tensors() -> None:
    stored = "vision_tower.encoder.layer.0.mlp.weights_in.weight"

    prefix = "model.vision_tower.encoder.layer.0.mlp"
    assert canonical_parts(stored) == (
        Part(f"{prefix}.gate_proj.weight", 0, 2),
        Part(f"{prefix}.up_proj.weight", 1, 2),
    )


def test_unknown_name_comes_back_unchanged() -> None:
    assert canonical_parts("optimizer.step") == (Part("optimizer.step"),)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_canonical_names_are_the_state_dicts_own(family: str) -> None:
    for name in names_of(family):
        assert canonical_parts(name) == (Part(name),)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_hub_names_lead_back_to_canonical_names(family: str) -> None:
    for name in names_of(family):
        assert canonical_parts(hub_name(name, vision_family=family)) == (Part(name),)
