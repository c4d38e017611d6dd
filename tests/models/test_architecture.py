"""Specifications of models, read from their configs."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.specifications import changed, read
from transformers import LlavaForConditionalGeneration, MistralConfig

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config

# What the model hub serves as llava-1.5-7b-hf: nearly everything is left to defaults.
LLAVA_1_5_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}


def test_llava_1_5_7b_is_read_from_its_sparse_config(tmp_path: Path) -> None:
    spec = read(tmp_path, LLAVA_1_5_7B)

    text, vision = spec.text, spec.vision
    assert (text.layers, text.hidden, text.intermediate) == (32, 4096, 11008)
    assert (text.heads, text.kv_heads, text.head_dim) == (32, 32, 128)
    assert (text.vocabulary, text.max_positions) == (32064, 4096)
    assert (text.rms_norm_eps, text.activation) == (1e-5, "silu")
    assert (text.attention_bias, text.mlp_bias, text.tied_embeddings) == (False, False, False)
    assert (text.rope.kind, text.rope.theta) == ("default", 10000.0)
    assert (vision.family, vision.hidden, vision.layers, vision.heads) == ("clip", 1024, 24, 16)
    assert (vision.image_size, vision.patch_size, vision.grid) == ((336, 336), 14, (24, 24))
    assert (vision.prefix_tokens, vision.skipped_patches, vision.tokens) == (0, 0, 576)
    assert (vision.feature_layer, vision.select_strategy) == (23, "default")
    assert (spec.image_token_id, spec.projector_activation) == (32000, "gelu")
    assert spec.projector_bias


def test_llava_1_5_7b_needs_the_tensors_of_its_index(tmp_path: Path) -> None:
    shapes = read(tmp_path, LLAVA_1_5_7B).tensor_shapes()

    # The hub's index says 14,126,854,144 bytes in 686 float16 tensors.
    assert len(shapes) == 686
    assert sum(math.prod(shape) for shape in shapes.values()) * 2 == 14_126_854_144
    assert shapes["model.multi_modal_projector.linear_1.weight"] == (4096, 1024)


def test_decoder_variants_are_told_apart(tmp_path: Path) -> None:
    config = tiny_config(layers=3, kv_heads=2, tied=True, attention_bias=True, mlp_bias=True)

    text = read(tmp_path, config).text

    assert (text.layers, text.heads, text.kv_heads, text.head_dim) == (3, 4, 2, 16)
    assert text.tied_embeddings
    assert text.attention_bias
    assert text.mlp_bias


def test_head_dim_need_not_divide_the_width(tmp_path: Path) -> None:
    spec = read(tmp_path, changed("text_config", head_dim=24))

    assert spec.text.head_dim == 24
    assert len(spec.text.rope.inv_freq) == 12
    query = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert spec.tensor_shapes()[query] == (4 * 24, 64)


def test_mistral_without_a_sliding_window_is_read_as_a_llama(tmp_path: Path) -> None:
    mistral = MistralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        sliding_window=None,
    )

    text = read(tmp_path, changed("") | {"text_config": mistral.to_dict()}).text

    assert (text.layers, text.kv_heads, text.attention_bias, text.mlp_bias) == (2, 2, False, False)


@pytest.mark.parametrize("same", [True, False])
def test_embeddings_stored_apart_count_as_tied_only_when_equal(same: bool, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(tied=True))
    file = tmp_path / "model.safetensors"
    stored = {name: value.clone() for name, value in load_file(file).items()}
    embedding = stored["language_model.model.embed_tokens.weight"]
    stored["language_model.lm_head.weight"] = embedding.clone() if same else embedding + 1
    save_file(stored, file)

    spec = read_architecture(Checkpoint.open(tmp_path))

    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    embedded = loaded.get_input_embeddings().weight
    assert spec.text.tied_embeddings is torch.equal(loaded.lm_head.weight, embedded) is same
    assert ("lm_head.weight" in spec.tensor_shapes()) is not same


# --- Building from a specification -------------------------------------------------------


def test_transformers_config_builds_the_network_with_the_needed_tensors(tmp_path: Path) -> None:
    spec = read(tmp_path, tiny_config(vision="siglip", kv_heads=1))

    state = LlavaForConditionalGeneration(spec.transformers_config()).state_dict()

    for name, shape in spec.tensor_shapes().items():
        assert tuple(state[name].shape) == shape


def test_transformers_config_is_a_copy(tmp_path: Path) -> None:
    spec = read(tmp_path, tiny_config())

    spec.transformers_config().text_config.num_hidden_layers = 99

    assert spec.transformers_config().text_config.num_hidden_layers == 4


def test_specifications_of_equal_configs_are_equal(tmp_path: Path) -> None:
    first = read(tmp_path, tiny_config())

    assert first == read(tmp_path, tiny_config())
    assert first != read(tmp_path, tiny_config(kv_heads=2))
    assert hash(first) == hash(read(tmp_path, tiny_config()))
