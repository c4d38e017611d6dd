"""Copies of checkpoints with other weights: whole or not at all, unchanged files as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models.training.conftest import MakeCheckpoint

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint, check_tensors
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_models.training.checkpoint_writer import copy_checkpoint, staged
from atp_runtime.errors import InputError, MachineError

NAME = "model.language_model.layers.0.mlp.up_proj.weight"


def new_values(checkpoint: Path, name: str = NAME) -> dict[str, torch.Tensor]:
    shape = Checkpoint.open(checkpoint).tensors[name].shape
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(8))}


def assert_copy(source: Path, target: Path, changed: dict[str, torch.Tensor]) -> None:
    old, new = Checkpoint.open(source), Checkpoint.open(target)
    check_tensors(new, read_architecture(new))
    assert old.tensors.keys() == new.tensors.keys()
    for name, info in old.tensors.items():
        assert new.tensors[name].dtype == info.dtype
        expected = changed[name].to(info.dtype) if name in changed else old.read(name)
        assert torch.equal(new.read(name), expected), name


def copied(source: Path, target: Path, changed: dict[str, torch.Tensor]) -> None:
    with staged(target) as directory:
        copy_checkpoint(source, directory, changed)


def test_unchanged_weights_are_the_same_file(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    copied(make_checkpoint(), tmp_path / "out", {})

    assert (tmp_path / "out/model.safetensors").samefile(make_checkpoint() / "model.safetensors")
    assert {it.name for it in (tmp_path / "out").iterdir()} == {
        it.name for it in make_checkpoint().iterdir()
    }


def test_changed_tensors_are_replaced_in_their_stored_dtype(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_random_checkpoint(source, tiny_config(), dtype=torch.float16)
    changed = new_values(source)

    copied(source, tmp_path / "out", changed)

    assert_copy(source, tmp_path / "out", changed)
    weights = tmp_path / "out/model.safetensors"
    assert weights.stat().st_mode & 0o444 == 0o444


def test_of_shards_only_those_with_changes_are_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_random_checkpoint(source, tiny_config(), max_shard_bytes=200_000)
    changed = new_values(source)
    holder = Checkpoint.open(source).tensors[NAME].file.name

    copied(source, tmp_path / "out", changed)

    assert_copy(source, tmp_path / "out", changed)
    for file in source.glob("*.safetensors"):
        assert file.samefile(tmp_path / "out" / file.name) == (file.name != holder)


@pytest.mark.parametrize("shards", [1, 2])
def test_bin_files_become_safetensors_when_something_changes(tmp_path: Path, shards: int) -> None:
    source = tmp_path / "source"
    write_random_checkpoint(source, tiny_config())
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = [sorted(state)[part::shards] for part in range(shards)]
    files = ["pytorch_model.bin"]
    if shards > 1:
        files = [f"pytorch_model-0000{n + 1}-of-00002.bin" for n in range(shards)]
        weight_map = {name: files[part] for part in range(shards) for name in names[part]}
        index = {"metadata": {}, "weight_map": weight_map}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for part, file in enumerate(files):
        torch.save({name: state[name] for name in names[part]}, source / file)
    changed = new_values(source)

    copied(source, tmp_path / "out", changed)

    assert_copy(source, tmp_path / "out", changed)
    assert not list((tmp_path / "out").glob("*.bin*"))


def test_a_head_stored_beside_its_embedding_stays_equal_to_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_random_checkpoint(source, tiny_config(tied=True))
    state = load_file(source / "model.safetensors")
    embedding = next(name for name in state if name.endswith("embed_tokens.weight"))
    (source / "model.safetensors").unlink()
    torch.save({**state, "lm_head.weight": state[embedding].clone()}, source / "pytorch_model.bin")
    value = torch.randn_like(state[embedding])
    changed = {"model.language_model.embed_tokens.weight": value, "lm_head.weight": value}

    copied(source, tmp_path / "out", changed)

    assert_copy(source, tmp_path / "out", changed)
    out = Checkpoint.open(tmp_path / "out")
    assert read_architecture(out).text.tied_embeddings


def test_trained_tensors_without_a_place_are_refused_and_nothing_is_left(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no model\.surprise"):
        copied(make_checkpoint(), tmp_path / "out", {"model.surprise": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_what_a_directory_says_about_its_own_weights_is_not_copied(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(make_checkpoint(), source)
    (source / "training_report.json").write_text("{}")
    (source / "demo_card.json").write_text("{}")
    (source / "LICENSE").write_text("free")

    copied(source, tmp_path / "out", {})

    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "LICENSE" in names
    assert not names & {"training_report.json", "demo_card.json"}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(InputError, match="exists"), staged(tmp_path / "out"):
        pass
    assert [it.name for it in tmp_path.iterdir()] == ["out"]


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged(tmp_path / "out") as directory:
        (directory / "file").touch()
    assert (tmp_path / "out/file").is_file()


def fill_the_disk(out: Path) -> None:
    with staged(out) as directory:
        (directory / "file").touch()
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_nothing_and_is_explained(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No space left"):
        fill_the_disk(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
