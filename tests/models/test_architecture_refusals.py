"""Architectures that are not supported are refused by name."""

from pathlib import Path
from typing import Any

import pytest
from tests.models.specifications import changed, read

from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError


def rectangular_dinov2() -> dict[str, Any]:
    return tiny_config(vision="dinov2").vision_config.to_dict() | {"image_size": [32, 48]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed("", model_type="llava_next"), "model_type 'llava_next' is not supported"),
        (changed("", model_type=None), "model_type None is not supported"),
        ({"model_type": "llava", "mm_vision_tower": "openai/clip"}, "no text_config"),
        (changed("") | {"vision_config": None}, "no vision_config"),
        (changed("text_config", model_type="qwen2"), "text model 'qwen2'"),
        (changed("text_config", model_type="mistral"), "sliding-window attention"),
        (changed("vision_config", model_type="vit"), "vision tower 'vit'"),
        (changed("vision_config", model_type="dinov2_with_registers"), "'dinov2_with_registers'"),
        (
            changed("", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
            "quantisation by bitsandbytes",
        ),
        (
            changed("text_config", quantization_config={"quant_method": "fp8"}),
            "quantisation by fp8",
        ),
        (
            changed(
                "text_config",
                rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0},
            ),
            "RoPE type 'longrope'",
        ),
        (
            changed("text_config", rope_parameters={"rope_type": "linear", "rope_theta": 1e4}),
            "rope_parameters",
        ),
        (
            changed(
                "text_config",
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 1024,
                    "partial_rotary_factor": 0.5,
                },
            ),
            "RoPE over 8 of 16 head dimensions",
        ),
        (
            changed("text_config", rope_parameters={"rope_type": "default", "rope_theta": 0.0}),
            "infinite frequencies",
        ),
        (
            changed(
                "text_config",
                head_dim=2,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            ),
            "RoPE parameters",
        ),
        (changed("text_config", head_dim=15), "even rotary dimension"),
        (changed("text_config", num_key_value_heads=3), "4 heads and 3 key-value heads"),
        (changed("text_config", num_hidden_layers=0), "0 layers"),
        (changed("text_config", num_attention_heads=0), "config.json"),
        (changed("text_config", hidden_size="wide"), "Transformers refuses it"),
        (changed("text_config", hidden_size=None), "config.json"),
        (changed("text_config", vocab_size=-1), "lies outside the vocabulary"),
        (changed("text_config", intermediate_size=-1), "cannot build this network"),
        (changed("text_config", hidden_act="tanhish"), "hidden_act 'tanhish'"),
        (changed("", projector_hidden_act="tanhish"), "projector_hidden_act 'tanhish'"),
        (changed("", image_token_index=512), "image_token_index 512"),
        (changed("", image_token_index=-1), "image_token_index -1"),
        (changed("", vision_feature_layer=5), "vision_feature_layer 5 is out of range"),
        (changed("", vision_feature_layer=-6), "vision_feature_layer -6 is out of range"),
        (changed("", vision_feature_layer=[1, 9]), "out of range"),
        (changed("", vision_feature_layer=[]), "out of range"),
        (changed("", vision_feature_layer=0), "vision_feature_layer 0 is the embeddings"),
        (changed("", vision_feature_select_strategy="cls"), "vision_feature_select_strategy"),
        (changed("vision_config", image_size=4), "no image feature is left|cannot build"),
        (changed("vision_config", image_size=[32, 48]), "image_size"),
        (changed("vision_config", image_size=[32, 32]), "image_size"),
        (
            changed("") | {"vision_config": rectangular_dinov2()},
            r"image_size \[32, 48\] is not supported",
        ),
        (changed("vision_config", patch_size=0), "patch_size"),
        (changed("vision_config", num_channels=4), "4 colour channels"),
        (changed("vision_config", num_attention_heads=3), "config.json"),
        (changed("vision_config", hidden_act="tanhish"), "cannot build this network"),
    ],
)
def test_other_architectures_are_refused_by_name(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said) as refusal:
        read(tmp_path, config)

    assert "config.json" in refusal.value.what


def test_what_is_not_supported_is_refused_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        read(tmp_path, changed("vision_config", model_type="vit"))

    for tower in ("clip_vision_model", "siglip_vision_model", "dinov2"):
        assert tower in refusal.value.why
