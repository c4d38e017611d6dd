"""The preprocessing equals that of Transformers' Pillow processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from tests.runtime.image_processors import (
    CLIP_336,
    PUBLISHED,
    SIGLIP_384,
    ours,
    photo_file,
    photo_sizes,
    processor_fields,
    reference,
    resized_photo,
    write_config,
)
from transformers.image_utils import load_image as reference_load_image

from atp_runtime.images import load_image
from atp_runtime.preprocess import ImageProcessor, PreprocessedImage

CLASSES = ["CLIP", "Siglip", "Bit", "Llava", "ViT"]


def assert_equal_pixels(
    fields: dict[str, Any], image: Image.Image, directory: Path
) -> PreprocessedImage:
    result = ours(fields, image, directory)
    assert result.pixel_values.dtype == np.float32
    assert result.pixel_values.flags.c_contiguous
    np.testing.assert_allclose(
        result.pixel_values, reference(fields, image, directory), rtol=0, atol=1e-6
    )
    return result


def save_sideways(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo_file("rocket.jpg")).save(path, exif=exif)


def photo_of_kind(kind: str, directory: Path) -> Path:
    path = directory / f"{kind}.png"
    photo = Image.open(photo_file("coffee.png")).convert("RGB")
    if kind == "exif":
        path = path.with_suffix(".jpg")
        save_sideways(path)
    elif kind == "alpha":
        photo.putalpha(Image.linear_gradient("L").resize(photo.size))
        photo.save(path)
    elif kind == "palette":
        photo.quantize(64).save(path, transparency=7)
    elif kind == "grayscale":
        photo.convert("L").save(path)
    elif kind == "jpeg":
        return photo_file("rocket.jpg")
    else:
        return photo_file("astronaut.png")
    return path


@pytest.mark.parametrize("kind", ["png", "jpeg", "palette", "alpha", "grayscale", "exif"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_pixel_values_equal_transformers_for_photo_files(
    name: str, kind: str, tmp_path: Path
) -> None:
    path = photo_of_kind(kind, tmp_path)
    result = ours(PUBLISHED[name], load_image(path), tmp_path)
    expected = reference(PUBLISHED[name], reference_load_image(str(path)), tmp_path)

    np.testing.assert_allclose(result.pixel_values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(641, 427), (333, 500), (37, 23), (1, 1), (9, 301), (336, 336)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_pixel_values_equal_transformers_for_odd_sizes(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    assert_equal_pixels(PUBLISHED[name], resized_photo(*size), tmp_path)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("suffix", ["", "Pil", "Fast"])
def test_missing_fields_take_the_defaults_of_the_class(
    name: str, suffix: str, tmp_path: Path
) -> None:
    image = resized_photo(301, 199)
    result = ours({"image_processor_type": f"{name}ImageProcessor{suffix}"}, image, tmp_path)
    expected = reference({"image_processor_type": f"{name}ImageProcessor"}, image, tmp_path)

    np.testing.assert_allclose(result.pixel_values, expected, rtol=0, atol=1e-6)


def test_a_file_that_names_no_class_is_read_as_transformers_reads_llava(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    model = {"model_type": "llava"}
    (tmp_path / "reference" / "config.json").write_text(json.dumps(model), encoding="utf-8")

    assert_equal_pixels({"do_pad": True, "size": 100}, resized_photo(301, 199), tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK"])
def test_an_image_that_skipped_load_image_is_converted_like_transformers(
    mode: str, tmp_path: Path
) -> None:
    image = resized_photo(90, 60)
    if mode in {"RGBA", "LA"}:
        image.putalpha(Image.linear_gradient("L").resize(image.size))

    assert_equal_pixels(CLIP_336, image.convert(mode), tmp_path)


VARIATIONS: list[dict[str, Any]] = [
    {"size": 100},
    {"size": [90, 130]},
    {"size": {"height": 90, "width": 130}},
    {"size": {"shortest_edge": 90}},
    {"size": {"shortest_edge": 90, "longest_edge": 110}},
    {"size": {"shortest_edge": 90, "longest_edge": 1000}},
    {"size": {"max_height": 90, "max_width": 130}},
    {"size": {"shortest_edge": 90}, "crop_size": 100},
    {"size": {"shortest_edge": 90}, "crop_size": [120, 77]},
    {"size": {"shortest_edge": 90}, "crop_size": {"height": 77, "width": 121}},
    {"size": 50, "default_to_square": True},
    {"size": 50, "default_to_square": False},
    {"do_resize": False},
    {"do_center_crop": False},
    {"do_center_crop": True, "crop_size": {"height": 90, "width": 91}},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
    {"rescale_factor": 1},
    {"image_mean": 0.5, "image_std": 0.25},
    {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
    {"do_convert_rgb": False},
    {"do_pad": True},
    {"do_pad": True, "pad_size": {"height": 600, "width": 700}},
    {"do_pad": True, "pad_size": 700, "do_center_crop": False},
    {"do_resize": None, "size": None, "resample": None, "default_to_square": None},
    {"do_center_crop": None, "crop_size": None},
    {"do_rescale": None, "rescale_factor": None},
    {"do_normalize": None, "image_mean": None, "image_std": None},
    {"do_convert_rgb": None, "do_pad": None, "pad_size": None},
    *({"resample": resample} for resample in range(6)),
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("fields", VARIATIONS, ids=str)
def test_every_shape_of_the_fields_means_what_it_means_to_transformers(
    fields: dict[str, Any], name: str, tmp_path: Path
) -> None:
    if name == "Llava" and fields.get("do_pad"):
        fields = {**fields, "pad_size": None}
    fields = {"image_processor_type": f"{name}ImageProcessor", **fields}

    assert_equal_pixels(fields, resized_photo(211, 317), tmp_path)


def test_fields_are_found_when_nested_in_a_processor_config(tmp_path: Path) -> None:
    nested = {"image_processor": SIGLIP_384, "patch_size": 14, "processor_class": "LlavaProcessor"}
    path = write_config(nested, tmp_path, "processor_config.json")

    result = ImageProcessor.from_file(path)(resized_photo(50, 40))

    assert result.pixel_values.shape == (3, 384, 384)


@settings(max_examples=60, deadline=None)
@given(fields=processor_fields(), size=photo_sizes)
def test_any_chain_of_steps_equals_transformers(
    fields: dict[str, Any], size: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert_equal_pixels(fields, resized_photo(*size), tmp_path_factory.mktemp("chain"))
