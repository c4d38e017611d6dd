"""The tensors of a checkpoint, checked against its architecture."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models.checkpoint_files import rewrite

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint, check_tensors
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError


def remove(directory: Path, *names: str) -> None:
    rewrite(directory, lambda stored: {k: v for k, v in stored.items() if k not in names})


def check(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    check_tensors(checkpoint, read_architecture(checkpoint))


def set_config(directory: Path, part: str, **fields: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    config[part] |= fields
    (directory / "config.json").write_text(json.dumps(config))


def test_check_passes_when_buffers_are_stored_too(directory: Path) -> None:
    extra = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(17),
    }
    rewrite(directory, lambda stored: stored | extra)

    check(directory)


def test_check_names_missing_misshapen_and_integer_tensors(directory: Path) -> None:
    layer = "language_model.model.layers.1"
    changed = {
        f"{layer}.mlp.up_proj.weight": torch.zeros(64, 128),
        f"{layer}.mlp.gate_proj.weight": torch.zeros(128, 64, dtype=torch.int8),
    }
    rewrite(directory, lambda stored: stored | changed)
    remove(directory, "language_model.lm_head.weight")

    with pytest.raises(InputError) as refusal:
        check(directory)

    said = refusal.value.what
    assert "lm_head.weight: expected [512, 64], found none" in said
    assert "layers.1.mlp.up_proj.weight: expected [128, 64], found [64, 128]" in said
    assert "layers.1.mlp.gate_proj.weight: expected float32, float16 or bfloat16" in said
    assert "torch.int8" in said


def test_check_counts_the_offenders_it_does_not_list(directory: Path) -> None:
    rewrite(directory, lambda stored: {"lm_head.weight": stored["language_model.lm_head.weight"]})

    with pytest.raises(InputError) as refusal:
        check(directory)

    assert refusal.value.what.count("found none") == 5
    assert "more" in refusal.value.what


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_check_refuses_when_config_and_weights_differ_in_depth(
    part: str, depth: int, directory: Path
) -> None:
    stored_depth = {"text_config": 2, "vision_config": 4}[part]
    set_config(directory, part, num_hidden_layers=stored_depth + depth - 2)

    with pytest.raises(InputError, match=r"layers\."):
        check(directory)


@pytest.mark.parametrize("tied", [True, False])
def test_check_asks_for_the_head_only_when_untied(tied: bool, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(tied=tied))
    assert ("lm_head.weight" in Checkpoint.open(tmp_path).tensors) is not tied

    check(tmp_path)


def test_check_does_not_ask_for_siglips_pooling_head(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision="siglip"))
    names = load_file(tmp_path / "model.safetensors")
    remove(tmp_path, *(name for name in names if ".head." in name))

    check(tmp_path)
