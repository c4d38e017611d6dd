import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint, check_tensors
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError

MIB = 2**20
FAMILIES = ["clip", "siglip", "dinov2", "dinov2-swiglu"]
StateDict = dict[str, torch.Tensor]


def config_of(family: str) -> LlavaConfig:
    config = tiny_config(vision=family.partition("-")[0], layers=2)
    if family == "dinov2-swiglu":
        config.vision_config.use_swiglu_ffn = True
    return config


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_random_checkpoint(directory, tiny_config(layers=2))
    return directory


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own for each test, free to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


def rewrite(directory: Path, change: Callable[[StateDict], StateDict]) -> None:
    file = directory / "model.safetensors"
    stored = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(stored), file)


def remove(directory: Path, *names: str) -> None:
    rewrite(directory, lambda stored: {k: v for k, v in stored.items() if k not in names})


def to_bin(directory: Path) -> Path:
    file = directory / "pytorch_model.bin"
    torch.save(load_file(directory / "model.safetensors"), file)
    (directory / "model.safetensors").unlink()
    return file


def to_shards(directory: Path, suffix: str = "safetensors") -> Path:
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, names in enumerate([sorted(stored)[::2], sorted(stored)[1::2]]):
        shard = f"{stem}-{number}.{suffix}"
        held = {name: stored[name] for name in names}
        if suffix == "safetensors":
            save_file(held, directory / shard)
        else:
            torch.save(held, directory / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = directory / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


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


# --- What cannot be opened ---------------------------------------------------------------


def without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def with_broken_json(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "llava"')


def with_a_list_for_config(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def with_deep_json(directory: Path) -> None:
    (directory / "config.json").write_text("[" * 100_000)


def with_pointer(directory: Path) -> None:
    (directory / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    )


def with_pointer_for_bin(directory: Path) -> None:
    with_pointer(directory)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def with_missing_shard(directory: Path) -> None:
    to_shards(directory)
    (directory / "model-1.safetensors").unlink()


def with_shard_elsewhere(directory: Path) -> None:
    index = to_shards(directory)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))


def with_unkept_promise(directory: Path) -> None:
    index = to_shards(directory)
    content = json.loads(index.read_text())
    content["weight_map"]["language_model.absent"] = "model-1.safetensors"
    index.write_text(json.dumps(content))


def with_empty_index(directory: Path) -> None:
    to_shards(directory).write_text("{}")


def with_twins(directory: Path) -> None:
    rewrite(directory, lambda stored: stored | {"lm_head.weight": torch.zeros(512, 64)})


def with_long_header(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes((10**9).to_bytes(8, "little") + b"{}")


def with_short_data(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


class Payload:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("the pickle ran code",)


def with_pickled_object(directory: Path) -> None:
    torch.save({"weight": Payload()}, to_bin(directory))


def with_legacy_bin(directory: Path) -> None:
    file = to_bin(directory)
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)


def with_nested_bin(directory: Path) -> None:
    file = to_bin(directory)
    torch.save({"state_dict": torch.load(file)}, file)


def with_sparse_bin(directory: Path) -> None:
    torch.save({"lm_head.weight": torch.eye(4).to_sparse()}, to_bin(directory))


def with_listed_bin(directory: Path) -> None:
    torch.save([torch.eye(4)], to_bin(directory))


@pytest.mark.parametrize(
    ("damage", "named", "said"),
    [
        (without_config, "checkpoint", "holds no config.json"),
        (without_weights, "checkpoint", "holds no weights"),
        (with_broken_json, "config.json", "cannot be read as JSON"),
        (with_a_list_for_config, "config.json", "not an object"),
        (with_deep_json, "config.json", "cannot be read as JSON"),
        (with_pointer, "model.safetensors", "git-LFS pointer"),
        (with_pointer_for_bin, "pytorch_model.bin", "git-LFS pointer"),
        (with_missing_shard, "model.safetensors.index.json", "model-1.safetensors, missing"),
        (with_shard_elsewhere, "model.safetensors.index.json", "places a in"),
        (with_unkept_promise, "model-1.safetensors", "lacks language_model.absent"),
        (with_empty_index, "model.safetensors.index.json", "no weight_map"),
        (with_twins, "model.safetensors", "both hold lm_head.weight"),
        (with_long_header, "model.safetensors", "not a whole safetensors file"),
        (with_short_data, "model.safetensors", "not a whole safetensors file"),
        (with_pickled_object, "pytorch_model.bin", "weights-only loading"),
        (with_legacy_bin, "pytorch_model.bin", "format of PyTorch before 1.6"),
        (with_nested_bin, "pytorch_model.bin", "holds a dict under 'state_dict'"),
        (with_sparse_bin, "pytorch_model.bin", "sparse or quantised"),
        (with_listed_bin, "pytorch_model.bin", "holds a list, not a state dict"),
    ],
)
def test_open_refuses_a_damaged_checkpoint_by_name(
    damage: Callable[[Path], None],
    named: str,
    said: str,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(directory)

    with pytest.raises(InputError) as refusal:
        Checkpoint.open(directory)

    assert named in refusal.value.what
    assert said in refusal.value.what
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_open_refuses_what_is_no_directory(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    if kind == "file":
        path.write_text("")

    with pytest.raises(InputError, match="is not a directory"):
        Checkpoint.open(path)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_open_refuses_weights_cut_anywhere(
    kind: str, data: st.DataObject, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("cut") / "checkpoint"))
    file = to_bin(directory) if kind == "bin" else directory / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])

    with pytest.raises(InputError):
        Checkpoint.open(directory)

    shutil.rmtree(directory)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_damaged_headers_are_refused_or_do_not_matter(
    kind: str, data: st.DataObject, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("bent") / "checkpoint"))
    file = to_bin(directory) if kind == "bin" else directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    for position in data.draw(st.lists(st.integers(0, 8000), min_size=1, max_size=5)):
        content[position] = data.draw(st.integers(0, 255))
    file.write_bytes(content)

    with contextlib.suppress(InputError):
        checkpoint = Checkpoint.open(directory)
        for name, info in checkpoint.tensors.items():
            assert checkpoint.read(name).shape == info.shape
    shutil.rmtree(directory)


# --- Fingerprint -------------------------------------------------------------------------


def test_fingerprint_is_the_same_for_a_copy(pristine: Path, directory: Path) -> None:
    assert Checkpoint.open(directory).fingerprint() == Checkpoint.open(pristine).fingerprint()


def with_another_config(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"note": "mine"}))


def with_one_tensor_scaled(directory: Path) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    rewrite(directory, lambda stored: stored | {name: 2 * stored[name]})


def with_another_dtype(directory: Path) -> None:
    rewrite(directory, lambda stored: {name: value.half() for name, value in stored.items()})


def with_another_shape(directory: Path) -> None:
    name = "language_model.lm_head.weight"
    rewrite(directory, lambda stored: stored | {name: stored[name].view(64, 512)})


def with_two_tensors_swapped(directory: Path) -> None:
    one, other = (f"language_model.model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    rewrite(directory, lambda stored: stored | {one: stored[other], other: stored[one]})


@pytest.mark.parametrize(
    "change",
    [
        with_another_config,
        with_one_tensor_scaled,
        with_another_dtype,
        with_another_shape,
        with_two_tensors_swapped,
        to_bin,
        to_shards,
    ],
)
def test_fingerprint_differs_when_the_checkpoint_differs(
    change: Callable[[Path], object], pristine: Path, directory: Path
) -> None:
    change(directory)

    assert Checkpoint.open(directory).fingerprint() != Checkpoint.open(pristine).fingerprint()


# --- Tensors against the architecture ----------------------------------------------------


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
