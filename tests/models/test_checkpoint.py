"""Checkpoints are read as Transformers reads them, whatever files they consist of."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.checkpoint_files import StateDict, rewrite, to_bin, to_shards
from transformers import LlavaConfig, LlavaForConditionalGeneration

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint, check_tensors
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError

MIB = 2**20
FAMILIES = ["clip", "siglip", "dinov2", "dinov2-swiglu"]


def config_of(family: str) -> LlavaConfig:
    config = tiny_config(vision=family.partition("-")[0], layers=2)
    if family == "dinov2-swiglu":
        config.vision_config.use_swiglu_ffn = True
    return config


def in_layout(layout: str, model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Saves a model in one of the layouts that LLaVA checkpoints are found in."""
    if layout == "saved by Transformers 5":
        model.save_pretrained(directory)
        return
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if layout == "model hub":
        model.save_pretrained(directory)
        saved = load_file(directory / "model.safetensors")
        nested = model.config.vision_config.model_type != "dinov2"
        old, new = "vision_tower.", "vision_tower.vision_model." if nested else "vision_tower."
        state = {name.replace(old, new): value for name, value in saved.items()}
    model.config.save_pretrained(directory)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("layout", ["state dict", "saved by Transformers 5", "model hub"])
@pytest.mark.parametrize("family", FAMILIES)
def test_read_gives_what_transformers_loads(family: str, layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    in_layout(layout, LlavaForConditionalGeneration(config_of(family)), tmp_path)

    checkpoint = Checkpoint.open(tmp_path)

    loaded, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert set(checkpoint.tensors) == set(loaded.state_dict())
    for name, expected in loaded.state_dict().items():
        assert torch.equal(checkpoint.read(name), expected), name
        assert checkpoint.tensors[name].shape == tuple(expected.shape)
    check_tensors(checkpoint, read_architecture(checkpoint))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_headers_give_dtype_shape_file_and_size(dtype: torch.dtype, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(), dtype=dtype)

    info = Checkpoint.open(tmp_path).tensors["lm_head.weight"]

    assert info.dtype == dtype
    assert info.shape == (512, 64)
    assert info.nbytes == 512 * 64 * dtype.itemsize
    assert info.file == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "convert",
    [to_bin, to_shards, lambda directory: to_shards(directory, "bin")],
    ids=["bin", "shards", "bin shards"],
)
def test_tensors_are_the_same_in_every_kind_of_file(
    convert: Callable[[Path], Path], pristine: Path, directory: Path
) -> None:
    convert(directory)

    expected, converted = Checkpoint.open(pristine), Checkpoint.open(directory)

    assert set(converted.tensors) == set(expected.tensors)
    for name in expected.tensors:
        assert torch.equal(converted.read(name), expected.read(name)), name


def test_bin_gives_views_of_a_shared_storage_their_own_values(directory: Path) -> None:
    file = to_bin(directory)
    stored = torch.load(file)
    base = torch.arange(512.0 * 64).view(64, 512)
    stored["language_model.lm_head.weight"] = base.t()
    stored["language_model.model.norm.weight"] = base[3, 5:69]
    torch.save(stored, file)

    checkpoint = Checkpoint.open(directory)

    assert torch.equal(checkpoint.read("lm_head.weight"), base.t())
    assert torch.equal(checkpoint.read("model.language_model.norm.weight"), base[3, 5:69])


def test_bin_written_anew_is_read_anew(directory: Path) -> None:
    file = to_bin(directory)
    first = Checkpoint.open(directory).read("lm_head.weight").clone()
    torch.save({name: value + 1 for name, value in torch.load(file).items()}, file)

    assert torch.equal(Checkpoint.open(directory).read("lm_head.weight"), first + 1)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_writing_to_a_tensor_leaves_the_file_alone(kind: str, directory: Path) -> None:
    file = to_bin(directory) if kind == "bin" else directory / "model.safetensors"
    before = file.read_bytes()

    Checkpoint.open(directory).read("lm_head.weight").zero_()

    assert file.read_bytes() == before
    assert Checkpoint.open(directory).read("lm_head.weight").any()


def with_big_tensors(stored: StateDict) -> StateDict:
    return stored | {f"extra.{n}": torch.full((4 * MIB,), float(n)) for n in range(12)}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_reading_everything_keeps_one_tensor_resident(kind: str, directory: Path) -> None:
    rewrite(directory, with_big_tensors)
    if kind == "bin":
        to_bin(directory)
    checkpoint = Checkpoint.open(directory)
    process = psutil.Process()
    before = process.memory_info().rss
    growth = 0

    for name in checkpoint.tensors:
        checkpoint.read(name).sum()
        growth = max(growth, process.memory_info().rss - before)

    total = sum(info.nbytes for info in checkpoint.tensors.values())
    assert total > 192 * MIB
    assert growth < 40 * MIB


def test_reading_an_unknown_tensor_is_refused(pristine: Path) -> None:
    with pytest.raises(InputError, match=r"no tensor lm_head\.bias"):
        Checkpoint.open(pristine).read("lm_head.bias")
