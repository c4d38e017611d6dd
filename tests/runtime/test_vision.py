import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.manifest import read_manifest
from atp_runtime.vision import VisionEncoder


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Iterator[VisionEncoder]:
    opened = VisionEncoder(Bundle.open(tiny_bundle), open_backend())
    yield opened
    opened.close()


@pytest.fixture
def own_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle whose processor files a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def open_unchecked(root: Path) -> VisionEncoder:
    return VisionEncoder(Bundle(root.resolve(), read_manifest(root)), open_backend())


def change_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_pixels_and_features_are_those_of_transformers(
    encoder: VisionEncoder, tiny, photos: list[Path]
) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(tiny.checkpoint)
    processor = AutoProcessor.from_pretrained(tiny.checkpoint)
    for path in photos:
        photo = encoder.read(path)
        pixels = processor.image_processor(Image.open(path), return_tensors="pt")["pixel_values"]
        np.testing.assert_allclose(photo.pixel_values, pixels[0].numpy(), atol=1e-6)
        with torch.no_grad():
            expected = model.get_image_features(pixels).pooler_output[0]
        np.testing.assert_allclose(encoder.encode(photo).values, expected.numpy(), atol=1e-4)


def test_features_stay_as_they_are_when_another_photo_is_encoded(
    encoder: VisionEncoder, photos: list[Path]
) -> None:
    first = encoder.encode(encoder.read(photos[0])).values
    before = first.copy()
    second = encoder.encode(encoder.read(photos[1])).values
    assert np.abs(second - before).max() > 0.1
    np.testing.assert_array_equal(first, before)


def test_photo_keeps_the_original_when_it_is_read(
    encoder: VisionEncoder, photos: list[Path]
) -> None:
    photo = encoder.read(photos[0])
    assert photo.image.size == (64, 48)
    assert (photo.view.left, photo.view.right) == pytest.approx((8, 56), abs=1)


def test_nested_settings_count_when_both_processor_files_have_some(
    own_copy: Path, photos: list[Path]
) -> None:
    settings = json.loads((own_copy / "processor/preprocessor_config.json").read_text())
    nested = {**settings, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    change_json(own_copy / "processor/processor_config.json", image_processor=nested)
    pixels = open_unchecked(own_copy).read(photos[0]).pixel_values
    expected = AutoProcessor.from_pretrained(own_copy / "processor").image_processor(
        Image.open(photos[0]), return_tensors="np"
    )["pixel_values"][0]
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    assert pixels.min() >= 0


def test_photo_is_refused_when_the_processor_does_not_make_the_graphs_size(
    own_copy: Path, photos: list[Path]
) -> None:
    change_json(own_copy / "processor/preprocessor_config.json", do_center_crop=False)
    encoder = open_unchecked(own_copy)
    with pytest.raises(InputError, match="delivers 42 x 32 pixels"):
        encoder.read(photos[0])
    assert encoder.read(photos[2]).pixel_values.shape == (3, 32, 32)


def test_bundle_is_refused_when_it_has_no_image_processor(own_copy: Path) -> None:
    (own_copy / "processor/preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        open_unchecked(own_copy)
