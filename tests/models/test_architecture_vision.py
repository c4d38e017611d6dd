"""Vision towers and what their image processors deliver."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.specifications import read
from transformers import LlavaForConditionalGeneration

from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config
from atp_runtime.errors import InputError


def features(directory: Path, height: int, width: int) -> torch.Tensor:
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    with torch.no_grad():
        pixels = torch.zeros(1, 3, height, width)
        return torch.stack(list(model.get_image_features(pixels).pooler_output))


@pytest.mark.parametrize("image_size", [32, 44])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_tokens_are_as_many_as_transformers_makes(
    family: str, strategy: str, image_size: int, tmp_path: Path
) -> None:
    config = tiny_config(vision=family, strategy=strategy, image_size=image_size, layers=1)
    write_random_checkpoint(tmp_path, config)

    vision = read_architecture(Checkpoint.open(tmp_path)).vision

    assert vision.grid == (image_size // 8, image_size // 8)
    assert vision.tokens == features(tmp_path, *vision.image_size).shape[1]
    assert vision.tokens == (
        vision.prefix_tokens + vision.grid[0] * vision.grid[1] - vision.skipped_patches
    )


@pytest.mark.parametrize(
    ("family", "strategy", "prefix_tokens", "skipped_patches"),
    [
        ("clip", "default", 0, 0),
        ("clip", "full", 1, 0),
        ("dinov2", "default", 0, 0),
        ("dinov2", "full", 1, 0),
        ("siglip", "default", 0, 1),
        ("siglip", "full", 0, 0),
    ],
)
def test_first_token_is_a_class_token_only_where_the_tower_has_one(
    family: str, strategy: str, prefix_tokens: int, skipped_patches: int, tmp_path: Path
) -> None:
    vision = read(tmp_path, tiny_config(vision=family, strategy=strategy)).vision

    assert (vision.prefix_tokens, vision.skipped_patches) == (prefix_tokens, skipped_patches)


@pytest.mark.parametrize(
    ("configured", "counted"),
    [(-2, 3), (-1, 4), (1, 1), (4, 4), ([0], (0,)), ([-5], (0,)), ([-2, -1, 1], (3, 4, 1))],
)
def test_feature_layer_is_counted_from_the_embeddings(
    configured: int | list[int], counted: int | tuple[int, ...], tmp_path: Path
) -> None:
    spec = read(tmp_path, tiny_config(feature_layer=configured))

    assert spec.vision.feature_layer == counted
    width = 32 * (len(counted) if isinstance(counted, tuple) else 1)
    assert spec.tensor_shapes()["model.multi_modal_projector.linear_1.weight"] == (64, width)


def set_processor(directory: Path, **fields: Any) -> None:
    file = directory / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_dinov2_takes_the_size_its_image_processor_delivers(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision="dinov2", layers=1))
    set_processor(tmp_path, crop_size={"height": 48, "width": 64})

    vision = read_architecture(Checkpoint.open(tmp_path)).vision

    assert (vision.image_size, vision.grid, vision.tokens) == ((48, 64), (6, 8), 48)
    assert features(tmp_path, 48, 64).shape[1] == vision.tokens


@pytest.mark.parametrize("nested", [True, False])
def test_image_size_prefers_the_processor_that_transformers_prefers(
    nested: bool, tmp_path: Path
) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision="dinov2", layers=1))
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    processor["crop_size"] = {"height": 64, "width": 64}
    if nested:
        content = {"processor_class": "LlavaProcessor", "image_processor": processor}
        (tmp_path / "processor_config.json").write_text(json.dumps(content))

    vision = read_architecture(Checkpoint.open(tmp_path)).vision

    assert vision.image_size == ((64, 64) if nested else (32, 32))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_processor_of_another_size_than_the_tower_is_refused(family: str, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config(vision=family))
    square = {"height": 40, "width": 40}
    set_processor(tmp_path, crop_size=square, size=square)

    with pytest.raises(InputError, match="delivers 40 x 40 pixels"):
        read_architecture(Checkpoint.open(tmp_path))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"do_center_crop": False}, "size depends on the input"),
        ({"image_processor_type": "NoSuchProcessor"}, "no image processor that Transformers"),
        ({"size": {"breadth": 3}}, "no image processor that Transformers"),
        ({"crop_size": {"height": 10**6, "width": 10**6}}, "1000000 pixels a side"),
    ],
)
def test_an_image_processor_without_one_size_is_refused(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_random_checkpoint(tmp_path, tiny_config())
    set_processor(tmp_path, **fields)

    with pytest.raises(InputError, match=said) as refusal:
        read_architecture(Checkpoint.open(tmp_path))

    assert "preprocessor_config.json" in refusal.value.what


def test_code_in_the_checkpoint_is_never_run(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, tiny_config())
    (tmp_path / "mine.py").write_text("raise SystemExit('code of the checkpoint was run')")
    set_processor(
        tmp_path, image_processor_type=None, auto_map={"AutoImageProcessor": "mine.Processor"}
    )

    assert read_architecture(Checkpoint.open(tmp_path)).vision.image_size == (32, 32)
