"""The view tells what part of a photo the model sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.runtime.image_processors import (
    CLIP_336,
    LLAVA_PAD,
    SIGLIP_384,
    ours,
    photo_sizes,
    processor_fields,
    resized_photo,
)

from atp_runtime.preprocess import ImageView


def coordinate_image(width: int, height: int) -> Image.Image:
    """Red counts the columns and green the rows; blue marks the image against padding."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)[None, :]
    pixels[..., 1] = np.arange(height)[:, None]
    pixels[..., 2] = 255
    return Image.fromarray(pixels)


@settings(max_examples=150, deadline=None)
@given(fields=processor_fields(), size=photo_sizes)
def test_every_pixel_lies_where_the_view_says(
    fields: dict[str, Any], size: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A linear ramp survives resizing with a symmetric filter, so each of the model's pixels
    # carries the coordinates it was taken from.
    fields = {**fields, "resample": 2, "image_mean": [0, 0, 0]}
    result = ours(fields, coordinate_image(*size), tmp_path_factory.mktemp("view"))
    red, green, blue = result.pixel_values
    view = result.view
    x = view.left + (np.arange(red.shape[1]) + 0.5) * view.width / red.shape[1]
    y = view.top + (np.arange(red.shape[0]) + 0.5) * view.height / red.shape[0]

    # Beyond this margin no filter reaches across the edge of the image.
    margin_x = 1 + max(1, view.width / red.shape[1])
    margin_y = 1 + max(1, view.height / red.shape[0])
    inside_x = (x > margin_x) & (x < size[0] - margin_x)
    inside_y = (y > margin_y) & (y < size[1] - margin_y)
    inside = inside_y[:, None] & inside_x[None, :]
    outside_x = (x < -margin_x) | (x > size[0] + margin_x)
    outside_y = (y < -margin_y) | (y > size[1] + margin_y)
    outside = outside_y[:, None] | outside_x[None, :]

    assert np.all(np.abs(red - (x - 0.5)[None, :])[inside] <= 1)
    assert np.all(np.abs(green - (y - 0.5)[:, None])[inside] <= 1)
    assert np.all(blue[inside] == 255)
    assert np.all(blue[outside] == 0)


@settings(deadline=None)
@given(size=st.tuples(st.integers(1, 500), st.integers(1, 500)))
def test_the_view_is_the_whole_image_when_it_is_squashed(
    size: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    fields = {**SIGLIP_384, "size": {"height": 8, "width": 8}}
    result = ours(fields, Image.new("RGB", size), tmp_path_factory.mktemp("squash"))

    assert result.view == ImageView(0, 0, *size)


def test_the_view_is_the_middle_square_when_the_long_edge_is_cropped(tmp_path: Path) -> None:
    result = ours(CLIP_336, resized_photo(1008, 672), tmp_path)

    assert result.view == ImageView(168, 0, 840, 672)


def test_the_view_reaches_beyond_the_image_when_it_is_padded_to_a_square(tmp_path: Path) -> None:
    result = ours(LLAVA_PAD, resized_photo(672, 336), tmp_path)

    assert result.view == ImageView(0, -168, 672, 504)


def test_the_view_reaches_beyond_the_image_when_the_crop_is_larger(tmp_path: Path) -> None:
    fields = {**CLIP_336, "do_resize": False, "crop_size": {"height": 120, "width": 60}}
    result = ours(fields, resized_photo(100, 100), tmp_path)

    assert result.view == ImageView(20, -10, 80, 110)
