"""What several stages changed is kept as the best update of a lower rank."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atp_models.atp import FILE_NAME, AtpModules
from atp_models.demo.curriculum.low_rank import cut_to_rank, low_rank_deltas
from atp_models.demo.deltas import PROJECTOR
from atp_models.demo.recipe import WEIGHTS
from atp_models.pruning_config import PruningConfig, write_pruning_config
from atp_runtime.errors import InputError

QUERY = "language_model.model.layers.3.self_attn.q_proj.weight"
GATE = "language_model.model.layers.0.mlp.gate_proj.weight"
NORM = "language_model.model.layers.0.input_layernorm.weight"


def write_checkpoint(directory: Path, changes: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    tensors = {QUERY: torch.ones(6, 8), GATE: torch.ones(10, 8), NORM: torch.ones(8)}
    tensors |= {f"multi_modal_projector.{name}": torch.ones(2) for name in PROJECTOR}
    for name, change in changes.items():
        tensors[name] = tensors[name] + change
    save_file(tensors, directory / WEIGHTS)
    config = PruningConfig(layers=(1,))
    write_pruning_config(config, directory)
    AtpModules(config).initialise().save(directory / FILE_NAME)
    return directory


def rank_two(generator: torch.Generator, rows: int) -> torch.Tensor:
    return torch.randn(rows, 2, generator=generator) @ torch.randn(2, 8, generator=generator)


def test_a_change_of_that_rank_is_kept_whole(tmp_path: Path) -> None:
    change = rank_two(torch.Generator().manual_seed(0), 6)
    base = write_checkpoint(tmp_path / "base", {})
    trained = write_checkpoint(tmp_path / "trained", {QUERY: change})

    reduced = low_rank_deltas(base, trained, rank=2, report=lambda _: None)

    assert list(reduced.deltas.lora) == [(3, "q_proj")]
    update = reduced.deltas.lora[3, "q_proj"]
    assert (update.a.shape, update.b.shape) == ((2, 8), (6, 2))
    torch.testing.assert_close(reduced.deltas.lora_scale * update.b @ update.a, change)
    assert reduced.kept == pytest.approx(1)


def test_of_a_higher_rank_the_share_that_is_kept_is_told(tmp_path: Path) -> None:
    change = torch.zeros(10, 8)
    change[0, 0], change[1, 1] = 3.0, 1.0
    base = write_checkpoint(tmp_path / "base", {})
    trained = write_checkpoint(tmp_path / "trained", {GATE: change})
    reduced = low_rank_deltas(base, trained, rank=1, report=lambda _: None)
    assert reduced.kept == pytest.approx(9 / 10)


def test_a_cut_checkpoint_has_the_best_change_of_its_rank_and_nothing_else_is_other(
    tmp_path: Path,
) -> None:
    change = torch.zeros(10, 8)
    change[0, 0], change[1, 1] = 3.0, 1.0
    base = write_checkpoint(tmp_path / "base", {})
    trained = write_checkpoint(
        tmp_path / "trained",
        {GATE: change, "multi_modal_projector.linear_1.bias": torch.ones(2)},
    )

    out = cut_to_rank(base, trained, tmp_path / "cut", rank=1, report=lambda _: None)

    found, expected = load_file(out / WEIGHTS), load_file(trained / WEIGHTS)
    expected[GATE] = torch.ones(10, 8)
    expected[GATE][0, 0] += 3.0
    torch.testing.assert_close(found, expected)
    assert (out / FILE_NAME).read_bytes() == (trained / FILE_NAME).read_bytes()
    assert cut_to_rank(base, trained, out, rank=2, report=lambda _: None) == out
    torch.testing.assert_close(load_file(out / WEIGHTS), expected)


def test_changes_that_deltas_cannot_hold_are_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {})
    trained = write_checkpoint(tmp_path / "trained", {NORM: torch.ones(8)})
    with pytest.raises(InputError, match="input_layernorm"):
        low_rank_deltas(base, trained, rank=1, report=lambda _: None)
