import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from atp_models.demo.adapters import read_adapter, write_deltas
from atp_models.demo.deltas import ATTENTION, MLP, Deltas, merge_lora, read_deltas
from atp_models.demo.recipe import Training
from atp_runtime.errors import InputError

TEXT = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def whole_llava() -> nn.Module:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=TEXT))


def save_adapter(model: nn.Module, directory: Path, **options) -> nn.Module:
    """Put a LoRA with random factors around a model, and save it."""
    targets = options.pop("target_modules", [*ATTENTION, *MLP])
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=targets, **options)
    adapted = get_peft_model(model, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(directory)
    return adapted


@pytest.mark.parametrize(
    ("make", "decoder"),
    [
        (lambda: LlamaModel(TEXT), lambda model: model),
        (lambda: LlamaForCausalLM(TEXT), lambda model: model.model),
        (whole_llava, lambda model: model.model.language_model),
    ],
    ids=["decoder", "language model", "LLaVA"],
)
def test_updates_merge_to_the_weights_that_peft_itself_merges(
    tmp_path: Path, trained: Deltas, make, decoder
) -> None:
    model = make()
    # The tower has projections of the same names: leave it out.
    scope = "(?!.*vision).*" + f"({'|'.join((*ATTENTION, *MLP))})"
    before = {f"model.{n}": v.clone() for n, v in decoder(model).state_dict().items()}
    merged = save_adapter(model, tmp_path, target_modules=scope).merge_and_unload()
    lora, scale = read_adapter(tmp_path)
    assert scale == 6 / 4
    assert len(lora) == 2 * len(ATTENTION + MLP)
    ours = merge_lora(before, Deltas({}, lora, scale, trained.modules))
    for name, value in decoder(merged).state_dict().items():
        torch.testing.assert_close(ours[f"model.{name}"], value)
    assert not torch.equal(
        ours["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"]
    )


def test_written_deltas_hold_the_adapter_the_projector_and_the_modules(
    tmp_path: Path, trained: Deltas, training: Training
) -> None:
    save_adapter(LlamaModel(TEXT), tmp_path / "adapter")
    write_deltas(
        tmp_path / "deltas",
        adapter=tmp_path / "adapter",
        projector=dict(trained.projector),
        modules=trained.modules,
        training=training,
    )
    found, how = read_deltas(tmp_path / "deltas")
    lora, scale = read_adapter(tmp_path / "adapter")
    assert (how, found.lora_scale) == (training, scale)
    assert found.lora.keys() == lora.keys()
    for key, update in lora.items():
        whole, held = (it.b @ it.a for it in (update, found.lora[key]))
        assert float((held - whole).norm()) <= 0.02 * float(whole.norm())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"q_proj": 1}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_a_lora_that_is_more_than_a_and_b_is_refused_by_the_option(
    tmp_path: Path, options: dict, problem: str
) -> None:
    save_adapter(LlamaForCausalLM(TEXT), tmp_path, **options)
    with pytest.raises(InputError, match=problem):
        read_adapter(tmp_path)


def test_a_lora_on_the_vision_tower_is_refused_by_its_tensor(tmp_path: Path) -> None:
    save_adapter(whole_llava(), tmp_path)
    with pytest.raises(InputError, match="vision"):
        read_adapter(tmp_path)


def test_a_without_b_is_refused(tmp_path: Path) -> None:
    save_adapter(LlamaModel(TEXT), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, file)
    with pytest.raises(InputError, match="A without B"):
        read_adapter(tmp_path)


def test_a_rank_that_is_no_number_is_refused(tmp_path: Path) -> None:
    save_adapter(LlamaModel(TEXT), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": "many"}))
    with pytest.raises(InputError, match="'many'"):
        read_adapter(tmp_path)
