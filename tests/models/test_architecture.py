import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from atp_models.architecture import ModelSpec, read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError

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


def open_config(directory: Path, config: dict[str, Any]) -> Checkpoint:
    """A checkpoint of which only the config matters."""
    (directory / "config.json").write_text(json.dumps(config))
    save_file({"placeholder": torch.zeros(1)}, directory / "model.safetensors")
    return Checkpoint.open(directory)


def read(directory: Path, config: LlavaConfig | dict[str, Any]) -> ModelSpec:
    plain = config if isinstance(config, dict) else config.to_dict()
    return read_architecture(open_config(directory, plain))


def changed(part: str, **fields: Any) -> dict[str, Any]:
    """The tiny config with fields of one part (or of the top, "") changed."""
    config = json.loads(json.dumps(tiny_config().to_dict()))
    (config[part] if part else config).update(fields)
    return config


def rectangular_dinov2() -> dict[str, Any]:
    return tiny_config(vision="dinov2").vision_config.to_dict() | {"image_size": [32, 48]}


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


# --- Rotary embedding --------------------------------------------------------------------

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


# --- Vision tower ------------------------------------------------------------------------


def features(directory: Path, height: int, width: int) -> torch.Tensor:
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    with torch.no_grad():
        pixels = torch.zeros(1, 3, height, width)
        return torch.stack(list(model.get_image_features(pixels).pooler_output))


@pytest.mark.parametrize("image_size", [32, 44])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_tokens_are_as_many_as_transformers_makes(
    family: str, strategy: str, image_size: int, tmp_path: Path
) -> None:
    config = tiny_config(vision=family, strategy=strategy, image_size=image_size, layers=1)
    write_random_checkpoint(tmp_path, config)

    vision = read_architecture(Checkpoint.open(tmp_path)).vision

    assert vision.grid == (image_size // 8, image_size // 8)
    assert vision.tokens == features(tmp_path, *vision.image_size).shape[1]
    assert vision.tokens == (
        vision.prefix_tokens + vision.grid[0] * vision.grid[1] - vision.skipped_patches
    )


@pytest.mark.parametrize(
    ("family", "strategy", "prefix_tokens", "skipped_patches"),
    [
        ("clip", "default", 0, 0),
        ("clip", "full", 1, 0),
        ("dinov2", "default", 0, 0),
        ("dinov2", "full", 1, 0),
        ("siglip", "default", 0, 1),
        ("siglip", "full", 0, 0),
    ],
)
def test_first_token_is_a_class_token_only_where_the_tower_has_one(
    family: str, strategy: str, prefix_tokens: int, skipped_patches: int, tmp_path: Path
) -> None:
    vision = read(tmp_path, tiny_config(vision=family, strategy=strategy)).vision

    assert (vision.prefix_tokens, vision.skipped_patches) == (prefix_tokens, skipped_patches)


@pytest.mark.parametrize(
    ("configured", "counted"),
    [(-2, 3), (-1, 4), (1, 1), (4, 4), ([0], (0,)), ([-5], (0,)), ([-2, -1, 1], (3, 4, 1))],
)
def test_feature_layer_is_counted_from_the_embeddings(
    configured: int | list[int], counted: int | tuple[int, ...], tmp_path: Path
) -> None:
    spec = read(tmp_path, tiny_config(feature_layer=configured))

    assert spec.vision.feature_layer == counted
    width = 32 * (len(counted) if isinstance(counted, tuple) else 1)
    assert spec.tensor_shapes()["model.multi_modal_projector.linear_1.weight"] == (64, width)


def set_processor(directory: Path, **fields: Any) -> None:
    file = directory / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_dinov2_takes_the_size_its_image_processor_delivers(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision="dinov2", layers=1))
    set_processor(tmp_path, crop_size={"height": 48, "width": 64})

    vision = read_architecture(Checkpoint.open(tmp_path)).vision

    assert (vision.image_size, vision.grid, vision.tokens) == ((48, 64), (6, 8), 48)
    assert features(tmp_path, 48, 64).shape[1] == vision.tokens


@pytest.mark.parametrize("nested", [True, False])
def test_image_size_prefers_the_processor_that_transformers_prefers(
    nested: bool, tmp_path: Path
) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision="dinov2", layers=1))
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    processor["crop_size"] = {"height": 64, "width": 64}
    if nested:
        content = {"processor_class": "LlavaProcessor", "image_processor": processor}
        (tmp_path / "processor_config.json").write_text(json.dumps(content))

    vision = read_architecture(Checkpoint.open(tmp_path)).vision

    assert vision.image_size == ((64, 64) if nested else (32, 32))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_processor_of_another_size_than_the_tower_is_refused(family: str, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision=family))
    square = {"height": 40, "width": 40}
    set_processor(tmp_path, crop_size=square, size=square)

    with pytest.raises(InputError, match="delivers 40 x 40 pixels"):
        read_architecture(Checkpoint.open(tmp_path))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"do_center_crop": False}, "size depends on the input"),
        ({"image_processor_type": "NoSuchProcessor"}, "no image processor that Transformers"),
        ({"size": {"breadth": 3}}, "no image processor that Transformers"),
        ({"crop_size": {"height": 10**6, "width": 10**6}}, "1000000 pixels a side"),
    ],
)
def test_an_image_processor_without_one_size_is_refused(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_random_checkpoint(tmp_path, tiny_config())
    set_processor(tmp_path, **fields)

    with pytest.raises(InputError, match=said) as refusal:
        read_architecture(Checkpoint.open(tmp_path))

    assert "preprocessor_config.json" in refusal.value.what


def test_code_in_the_checkpoint_is_never_run(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config())
    (tmp_path / "mine.py").write_text("raise SystemExit('code of the checkpoint was run')")
    set_processor(
        tmp_path, image_processor_type=None, auto_map={"AutoImageProcessor": "mine.Processor"}
    )

    assert read_architecture(Checkpoint.open(tmp_path)).vision.image_size == (32, 32)


# --- What is refused ---------------------------------------------------------------------


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
