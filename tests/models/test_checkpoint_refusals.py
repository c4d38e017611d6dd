"""Checkpoints that cannot be opened are refused by name."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.checkpoint_files import rewrite, to_bin, to_shards

from atp_models.checkpoint import Checkpoint
from atp_runtime.errors import InputError


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
