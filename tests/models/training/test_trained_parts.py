"""Which weights learn in which mode, and adapters merged as PEFT merges them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.models.training.conftest import (
    FEATURES,
    MakeCheckpoint,
    load,
    pixels,
    random_modules,
    row_of,
)

from atp_models.training.options import TrainingOptions
from atp_models.training.packing import PatchGrid
from atp_models.training.rows import make_batch
from atp_models.training.soft_decoder import SoftDecoder
from atp_models.training.trained_parts import PROJECTOR_FILE, TrainedParts


def decoder_of(checkpoint: Path, grid: PatchGrid) -> SoftDecoder:
    return SoftDecoder(load(checkpoint), random_modules((1, 3)), grid)


def randomise_adapter(decoder: SoftDecoder) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if ".lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)


@pytest.mark.parametrize(
    ("mode", "pattern"),
    [
        ("modules", r"atp\."),
        ("projector", r"atp\.|llava\.model\.multi_modal_projector\."),
        ("lora", r"atp\.|llava\.model\.multi_modal_projector\.|.*\.lora_[AB]\.default\.weight"),
        (
            "full",
            r"atp\.|llava\.(lm_head|model\.(multi_modal_projector|language_model))\.",
        ),
    ],
)
def test_a_mode_trains_its_parts_and_no_others(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, mode: str, pattern: str
) -> None:
    decoder = decoder_of(make_checkpoint(), grid)
    parts = TrainedParts(decoder, TrainingOptions(mode=mode))

    everything = [name for name, _ in decoder.named_parameters()]
    assert parts.names() == [name for name in everything if re.match(pattern, name)]
    assert parts.names()


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_frozen_modules_and_what_they_read_do_not_learn(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, mode: str
) -> None:
    unfrozen = TrainedParts(decoder_of(make_checkpoint(), grid), TrainingOptions(mode=mode))
    decoder = decoder_of(make_checkpoint(), grid)
    parts = TrainedParts(decoder, TrainingOptions(mode=mode, freeze_modules=True))

    read = re.compile(
        r"atp\.|.*(projector|embed_tokens)|.*layers\.0\.|.*layers\.2\.self_attn\.[qk]_proj"
    )
    tied = "llava.lm_head.weight" if decoder.llava.config.text_config.tie_word_embeddings else None
    learnt = [name for name in unfrozen.names() if not read.match(name) and name != tied]
    assert parts.names() == learnt
    assert any("layers.2.self_attn.v_proj" in name for name in learnt)
    assert any("layers.1.self_attn.q_proj" in name for name in learnt)
    assert unfrozen.modules_learn
    assert not parts.modules_learn


def test_an_adapter_is_on_every_linear_layer_of_the_decoder_and_nowhere_else(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    decoder = decoder_of(make_checkpoint(), grid)
    parts = TrainedParts(decoder, TrainingOptions(mode="lora", lora_rank=3))

    adapted = {name.partition(".lora_A.")[0] for name in parts.names() if ".lora_A." in name}
    layers = len(decoder.llava.model.language_model.layers)
    assert len(adapted) == 7 * layers
    assert all(".language_model.layers." in name for name in adapted)


def test_a_merged_adapter_is_what_peft_merges(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, tmp_path: Path
) -> None:
    decoder = decoder_of(make_checkpoint(), grid)
    parts = TrainedParts(decoder, TrainingOptions(mode="lora", lora_rank=3))
    randomise_adapter(decoder)
    state = decoder.state_dict()

    changed = parts.checkpoint_tensors(state)
    parts.save_adapter(tmp_path, state)
    merged = PeftModel.from_pretrained(load(make_checkpoint()), tmp_path).merge_and_unload()

    expected = merged.state_dict()
    original = load(make_checkpoint()).state_dict()
    assert changed.keys() < original.keys()
    for name, value in expected.items():
        found = changed.get(name, original[name])
        torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-6)
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(changed[name], original[name])


def test_the_projector_is_saved_beside_the_adapter(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, tmp_path: Path
) -> None:
    decoder = decoder_of(make_checkpoint(), grid)
    parts = TrainedParts(decoder, TrainingOptions(mode="lora"))

    parts.save_adapter(tmp_path, decoder.state_dict())

    saved = load_file(tmp_path / PROJECTOR_FILE)
    own = decoder.llava.model.multi_modal_projector.state_dict()
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)


def test_the_head_follows_the_embedding_it_is_tied_to(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    decoder = decoder_of(make_checkpoint(tied=True), grid)
    parts = TrainedParts(decoder, TrainingOptions(mode="full"))

    changed = parts.checkpoint_tensors(decoder.state_dict())

    embedding = changed["model.language_model.embed_tokens.weight"]
    assert changed["lm_head.weight"] is embedding


def test_modules_alone_change_no_tensor_of_the_checkpoint(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, tmp_path: Path
) -> None:
    decoder = decoder_of(make_checkpoint(), grid)
    parts = TrainedParts(decoder, TrainingOptions())

    parts.save_adapter(tmp_path / "none", decoder.state_dict())

    assert parts.checkpoint_tensors(decoder.state_dict()) == {}
    assert not (tmp_path / "none").exists()


def test_parameter_groups_have_the_rates_of_their_parts(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid
) -> None:
    decoder = decoder_of(make_checkpoint(), grid)
    options = TrainingOptions(mode="full", learning_rate=3e-5, modules_learning_rate=2e-3)
    parts = TrainedParts(decoder, options)

    groups = parts.groups(decoder, weight_decay=0.1)

    names = {id(value): name for name, value in decoder.named_parameters()}
    seen = []
    for group in groups:
        for value in group["params"]:
            name = names[id(value)]
            seen.append(name)
            assert group["lr"] == (2e-3 if name.startswith("atp.") else 3e-5)
            decays = value.ndim > 1 and not name.startswith("atp.")
            assert group["weight_decay"] == (0.1 if decays else 0.0)
    assert sorted(seen) == sorted(parts.names())


def test_an_adapted_network_computes_with_its_adapter_scores_included(
    make_checkpoint: MakeCheckpoint, grid: PatchGrid, tmp_path: Path
) -> None:
    decoder = decoder_of(make_checkpoint(), grid)
    parts = TrainedParts(decoder, TrainingOptions(mode="lora", lora_rank=3))
    randomise_adapter(decoder)
    batch = make_batch([row_of(5, 7, answer=3)], FEATURES, pixel_values=pixels(1))

    merged = load(make_checkpoint())
    merged.load_state_dict(parts.checkpoint_tensors(decoder.state_dict()), strict=False)
    plain = SoftDecoder(merged, decoder.atp, grid)

    with torch.no_grad():
        one, other = decoder(batch, 30.0), plain(batch, 30.0)
    torch.testing.assert_close(one.logits, other.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.counts, other.counts, atol=1e-3, rtol=1e-4)
