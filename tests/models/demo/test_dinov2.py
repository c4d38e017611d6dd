from pathlib import Path

import onnx
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from atp_models.demo.dinov2 import interpolate_positions, read_vision_tower
from atp_runtime.errors import CheckFailedError


@pytest.mark.parametrize(("image_size", "grid"), [(42, 3), (70, 5), (336, 24)])
def test_interpolated_positions_equal_what_transformers_uses_at_that_size(
    image_size: int, grid: int
) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=14 * 37
    )
    embeddings = Dinov2Model(config).embeddings
    patches = torch.zeros(1, 1 + grid * grid, 64)
    theirs = embeddings.interpolate_pos_encoding(patches, image_size, image_size)
    ours = interpolate_positions(embeddings.position_embeddings, grid)
    assert ours.shape == (1, 1 + grid * grid, 64)
    assert torch.equal(ours, theirs)


def test_positions_stay_the_very_same_when_the_grid_does_not_change() -> None:
    table = torch.randn(1, 1 + 7 * 7, 8)
    assert torch.equal(interpolate_positions(table, 7), table)


def test_tower_has_every_parameter_of_the_exported_model(tiny_tower) -> None:
    tower = read_vision_tower(tiny_tower.onnx_file, image_size=70)
    assert tower.state.keys() == tiny_tower.state.keys()
    for name, value in tiny_tower.state.items():
        assert torch.equal(tower.state[name], value), name


def test_tower_config_describes_the_exported_model_at_the_new_size(tiny_tower) -> None:
    config = read_vision_tower(tiny_tower.onnx_file, image_size=336).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 1)
    assert (config.image_size, config.patch_size, config.mlp_ratio) == (336, 14, 4)


def test_tower_positions_match_the_grid_of_the_image_size(tiny_tower) -> None:
    state = read_vision_tower(tiny_tower.onnx_file, image_size=336).state
    assert state["embeddings.position_embeddings"].shape == (1, 1 + 24 * 24, 64)


@pytest.mark.parametrize("gone", ["onnx::Concat_1", "backbone.embeddings.patch_embeddings"])
def test_tower_is_refused_when_the_graph_lacks_a_piece(
    tiny_tower, tmp_path: Path, gone: str
) -> None:
    model = onnx.load(tiny_tower.onnx_file)
    kept = [i for i in model.graph.initializer if not i.name.startswith(gone)]
    assert len(kept) < len(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckFailedError):
        read_vision_tower(tmp_path / "other.onnx", image_size=336)
