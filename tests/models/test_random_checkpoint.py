import errno
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from atp_models import random_checkpoint
from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint, check_tensors
from atp_models.random_checkpoint import main, write_random_checkpoint
from atp_models.random_configs import SHAPES, named_config, tiny_config
from atp_runtime.errors import InputError, MachineError

FAMILIES = ["clip", "siglip", "dinov2"]
QUESTION = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}],
    }
]


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_directory_loads_and_answers_in_transformers(
    family: str, strategy: str, tmp_path: Path
) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision=family, strategy=strategy))

    model, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(tmp_path)
    prompt = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    inputs = processor(images=photo(), text=prompt, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    vision = read_architecture(Checkpoint.open(tmp_path)).vision
    assert (inputs.input_ids == model.config.image_token_id).sum() == vision.tokens
    assert answer.shape[1] > inputs.input_ids.shape[1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_stay_near_unit_variance(family: str, tied: bool, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision=family, tied=tied, layers=12))
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    prompt = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    inputs = processor(images=photo(), text=prompt, return_tensors="pt")

    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)

    for state in (*outputs.hidden_states, outputs.logits, outputs.image_hidden_states[0]):
        assert 0.1 < state.std() < 3.0


def test_attention_is_neither_flat_nor_one_hot(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config())
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")

    with torch.no_grad():
        attention = model(input_ids=torch.arange(3, 67)[None], output_attentions=True).attentions

    last_rows = torch.stack(attention)[..., -1, :]
    peaks = last_rows.amax(dim=-1).mean()
    assert 3 / 64 < peaks < 0.9


def test_tensors_are_written_under_the_hubs_names(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config())
    content = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])

    assert {
        "language_model.lm_head.weight",
        "language_model.model.layers.3.self_attn.q_proj.weight",
        "vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias",
        "multi_modal_projector.linear_2.weight",
    } <= header.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_and_config_have_the_dtype_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(), dtype=dtype)

    checkpoint = Checkpoint.open(tmp_path)

    assert {info.dtype for info in checkpoint.tensors.values()} == {dtype}
    assert checkpoint.config["dtype"] == str(dtype).removeprefix("torch.")
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path).dtype == dtype


def test_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_random_checkpoint(tmp_path / name, tiny_config(), seed=7)
    write_random_checkpoint(tmp_path / "three", tiny_config(), seed=8)

    one, two, three = (files_of(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one["model.safetensors"] != three["model.safetensors"]


def test_no_two_matrices_are_alike(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config())
    checkpoint = Checkpoint.open(tmp_path)

    matrices = [
        checkpoint.read(name)
        for name, info in checkpoint.tensors.items()
        if name.endswith("q_proj.weight") and info.shape == (64, 64)
    ]

    assert len(matrices) == 4
    for number, matrix in enumerate(matrices):
        assert matrix.unique(dim=0).shape[0] == 64
        assert not any(torch.equal(matrix, other) for other in matrices[:number])


def test_weights_are_split_into_shards_of_the_size_asked_for(tmp_path: Path) -> None:
    limit = 150_000
    write_random_checkpoint(tmp_path / "shards", tiny_config(), max_shard_bytes=limit)
    write_random_checkpoint(tmp_path / "whole", tiny_config())

    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    sharded, whole = (Checkpoint.open(tmp_path / name) for name in ("shards", "whole"))

    assert len(shards) > 2
    sizes = dict.fromkeys(shards, 0)
    for info in sharded.tensors.values():
        sizes[info.file] += info.nbytes
    assert max(sizes.values()) <= limit
    assert all(torch.equal(sharded.read(name), whole.read(name)) for name in whole.tensors)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "shards")
    assert torch.equal(loaded.lm_head.weight, whole.read("lm_head.weight"))


# --- Tokenizer ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_tokenizer_puts_special_tokens_where_the_config_says(shape: str, tmp_path: Path) -> None:
    config = named_config(shape)
    random_checkpoint.write_processor(tmp_path, config)

    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer

    assert tokenizer.convert_tokens_to_ids("<image>") == config.image_token_id
    assert tokenizer.pad_token_id == config.text_config.pad_token_id
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    ids = sorted(tokenizer.get_vocab().values())
    assert ids == list(range(len(ids)))
    assert ids[-1] < config.text_config.vocab_size


def test_tokenizer_merges_bytes_and_gives_any_text_back(tmp_path: Path) -> None:
    random_checkpoint.write_processor(tmp_path, tiny_config())
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    text = "A checkpoint's tensors, größer: 猫\n"

    ids = tokenizer(text).input_ids

    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) < len(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_needs_room_for_every_byte(tmp_path: Path) -> None:
    config = tiny_config()
    config.text_config.vocab_size = 200

    with pytest.raises(InputError, match="vocabulary of 200"):
        random_checkpoint.write_processor(tmp_path, config)


# --- Named shapes ------------------------------------------------------------------------


# As published: CLIP ViT-L/14-336's vision model, Vicuna-7B and TinyLlama-1.1B with 32,000
# tokens; 64 tokens more in embedding and head, and the projector's two layers with biases.
TOWER, VICUNA, TINY_LLAMA = 303_507_456, 6_738_415_616, 1_100_048_384


@pytest.mark.parametrize(
    ("shape", "decoder", "width"), [("7b", VICUNA, 4096), ("1b", TINY_LLAMA, 2048)]
)
def test_named_shape_has_its_number_of_parameters(shape: str, decoder: int, width: int) -> None:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(named_config(shape))

    projector = (1024 + 1) * width + (width + 1) * width
    assert model.num_parameters() == TOWER + decoder + 2 * 64 * width + projector


def test_smallest_named_shape_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(named_config("135m"))

    # SmolLM2-135M as published, one table for embedding and head; CLIP ViT-B/16's vision model
    # with the positions of 24 x 24 patches.
    decoder, tower = 134_515_008, 85_799_424 + (24 * 24 - 14 * 14) * 768
    projector = (768 + 1) * 576 + (576 + 1) * 576
    assert model.num_parameters() == tower + decoder + 64 * 576 + projector


# --- What goes wrong ---------------------------------------------------------------------


def test_a_directory_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match="is not empty"):
        write_random_checkpoint(tmp_path, tiny_config())

    assert files_of(tmp_path) == {"notes.txt": b"mine"}


def test_a_full_disk_leaves_nothing_that_passes_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(random_checkpoint, "write_processor", fail)

    with pytest.raises(MachineError, match="No space left on device"):
        write_random_checkpoint(tmp_path, tiny_config())

    with pytest.raises(InputError, match=r"holds no config\.json"):
        Checkpoint.open(tmp_path)


def test_command_writes_a_checkpoint_that_fits_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_dir = tmp_path / "new" / "tiny"

    assert main(["tiny", str(out_dir), "--dtype", "bfloat16", "--seed", "3"]) == 0

    checkpoint = Checkpoint.open(out_dir)
    check_tensors(checkpoint, read_architecture(checkpoint))
    assert checkpoint.tensors["lm_head.weight"].dtype == torch.bfloat16
    assert "GB/s" in capsys.readouterr().out


def test_command_ends_with_2_when_it_would_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    assert main(["tiny", str(tmp_path)]) == 2

    assert "is not empty" in capsys.readouterr().err


def test_module_runs_as_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["random_checkpoint", "huge", "out"])
    monkeypatch.delitem(sys.modules, "atp_models.random_checkpoint")

    with pytest.raises(SystemExit) as ending:
        runpy.run_module("atp_models.random_checkpoint", run_name="__main__")

    assert ending.value.code == 2
    assert "invalid choice: 'huge'" in capsys.readouterr().err
