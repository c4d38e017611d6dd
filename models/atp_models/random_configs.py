"""Configs of LLaVAs to fill with random weights: tiny ones for tests, real shapes for size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    SiglipVisionConfig,
)

TINY_VOCABULARY = 512
_TINY_SPECIAL = {"image_token_index": TINY_VOCABULARY - 8, "pad_token_id": TINY_VOCABULARY - 7}


def tiny_config(  # noqa: PLR0913
    *,
    vision: str = "clip",
    layers: int = 4,
    kv_heads: int = 4,
    tied: bool = False,
    strategy: str = "default",
    feature_layer: int | list[int] = -2,
    image_size: int = 32,
    rope_scaling: dict[str, Any] | None = None,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> LlavaConfig:
    """A LLaVA that runs in milliseconds: hidden 64, 4 heads of 16, patches of 8 pixels.

    Args:
        vision: "clip", "siglip" or "dinov2".
        layers: Decoder layers.
        kv_heads: Key-value heads, out of 4.
        tied: Whether the LM head is the embedding.
        strategy: `vision_feature_select_strategy`.
        feature_layer: `vision_feature_layer`; the tower has 4 layers.
        image_size: Side of the image in pixels, a multiple of 8.
        rope_scaling: RoPE parameters such as `{"rope_type": "linear", "factor": 2.0}`.
        attention_bias: Whether the decoder's attention projections have biases.
        mlp_bias: Whether the decoder's feed-forward projections have biases.

    Returns:
        A config with vocabulary 512, image token 504, padding token 505 and 2048 positions.
    """
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=TINY_VOCABULARY,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default", **(rope_scaling or {})},
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        tie_word_embeddings=tied,
        pad_token_id=_TINY_SPECIAL["pad_token_id"],
    )
    return _llava(
        _tiny_tower(vision, image_size),
        text,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=feature_layer,
        **_TINY_SPECIAL,
    )


def named_config(name: str) -> LlavaConfig:
    """The config of a named shape.

    Args:
        name: A key of `SHAPES`: "tiny"; "135m", SmolLM2-135M with CLIP ViT-B/16; "1b",
            TinyLlama-1.1B with LLaVA-1.5's tower; "7b", exactly LLaVA-1.5-7B.
    """
    return SHAPES[name]()


def _one_billion() -> LlavaConfig:
    return _llava_1_5(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )


def _seven_billion() -> LlavaConfig:
    return _llava_1_5(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
    )


def _small() -> LlavaConfig:
    tower = CLIPVisionConfig(patch_size=16, image_size=384)
    decoder = LlamaConfig(
        vocab_size=49216,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        pad_token_id=49153,
    )
    return _llava(tower, decoder, image_token_index=49152, pad_token_id=49153)


SHAPES: dict[str, Callable[[], LlavaConfig]] = {
    "tiny": tiny_config,
    "135m": _small,
    "1b": _one_billion,
    "7b": _seven_billion,
}


def _llava_1_5(**text: int) -> LlavaConfig:
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        image_size=336,
        projection_dim=768,
    )
    decoder = LlamaConfig(vocab_size=32064, rms_norm_eps=1e-5, pad_token_id=32001, **text)
    return _llava(tower, decoder, image_token_index=32000, pad_token_id=32001)


def _tiny_tower(family: str, image_size: int) -> PreTrainedConfig:
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": 8,
    }
    if family == "dinov2":
        return Dinov2Config(mlp_ratio=2, **common)
    kinds = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
    return kinds[family](intermediate_size=64, **common)


def _llava(tower: PreTrainedConfig, text: LlamaConfig, **fields: Any) -> LlavaConfig:
    patches = (tower.image_size // tower.patch_size) ** 2
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_seq_length=patches,
        architectures=["LlavaForConditionalGeneration"],
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        **fields,
    )
