"""One panel: every patch sits where the model's view says, and looks as its fate demands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atp_runtime.panel import PADDING, frame_panel, paint_patches, paint_photo
from atp_runtime.preprocess import ImageView

GRID = (24, 24)


def colourful(width: int, height: int) -> Image.Image:
    """Red counts columns and green rows, both in parts of 255; blue is always 255."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = np.rint((np.arange(width)[None, :] + 0.5) * 255 / width)
    pixels[..., 1] = np.rint((np.arange(height)[:, None] + 0.5) * 255 / height)
    pixels[..., 2] = 255
    return Image.fromarray(pixels)


def test_a_photo_of_the_size_of_the_view_is_shown_pixel_for_pixel() -> None:
    photo = colourful(480, 480)
    frame = frame_panel(photo.size, ImageView(0, 0, 480, 480), GRID)

    np.testing.assert_array_equal(paint_photo(photo, frame), np.asarray(photo))


def test_kept_patches_are_as_in_the_photo_but_for_their_outline() -> None:
    frame = frame_panel((480, 480), ImageView(0, 0, 480, 480), GRID)
    photo = paint_photo(colourful(480, 480), frame)
    kept = np.zeros(GRID, bool)
    kept[3, 5] = True

    panel = paint_patches(photo, frame, kept)

    rows, columns = slice(3 * 20, 4 * 20), slice(5 * 20, 6 * 20)
    inner = slice(rows.start + 1, rows.stop - 1), slice(columns.start + 1, columns.stop - 1)
    np.testing.assert_array_equal(panel[inner], photo[inner])
    outline = np.ones((20, 20), bool)
    outline[1:-1, 1:-1] = False
    assert np.all(panel[rows, columns][outline] > photo[rows, columns][outline] - 1e-3)
    assert np.all(panel[rows, columns][outline].min(axis=1) > 150)


def test_dropped_patches_are_darker_and_have_no_colour_of_their_own() -> None:
    frame = frame_panel((480, 480), ImageView(0, 0, 480, 480), GRID)
    photo = paint_photo(colourful(480, 480), frame)

    panel = paint_patches(photo, frame, np.zeros(GRID, bool))

    assert panel.max() < 110
    tint = panel - panel.mean(axis=2, keepdims=True)
    np.testing.assert_allclose(tint, np.broadcast_to(tint[0, 0], tint.shape), atol=1e-3)


def test_a_dropped_patch_differs_from_a_kept_one_even_in_a_black_photo() -> None:
    frame = frame_panel((480, 480), ImageView(0, 0, 480, 480), GRID)
    photo = paint_photo(Image.new("RGB", (480, 480)), frame)

    dropped = paint_patches(photo, frame, np.zeros(GRID, bool))

    assert dropped.min() >= 30
    assert photo.max() == 0


def test_nothing_is_outlined_when_all_patches_are_kept() -> None:
    frame = frame_panel((480, 480), ImageView(0, 0, 480, 480), GRID)
    photo = paint_photo(colourful(480, 480), frame)

    np.testing.assert_array_equal(paint_patches(photo, frame, np.ones(GRID, bool)), photo)


def test_what_was_cropped_away_is_pale_grey_and_untouched_by_pruning() -> None:
    photo = Image.new("RGB", (720, 480), (200, 40, 40))
    frame = frame_panel(photo.size, ImageView(120, 0, 600, 480), GRID)

    before = paint_photo(photo, frame)
    after = paint_patches(before, frame, np.zeros(GRID, bool))

    assert before.shape == (480, 720, 3)
    assert frame.is_cropped
    assert not frame.is_padded
    for margin in (slice(0, 119), slice(601, 720)):
        outside = before[:, margin]
        assert np.all(outside[..., 0] == outside[..., 2])
        assert outside.min() > 150
        assert outside.std() > 1  # the hatching
        np.testing.assert_array_equal(after[:, margin], outside)


def test_padding_is_grey_and_its_patches_can_be_dropped() -> None:
    photo = Image.new("RGB", (480, 240), (200, 40, 40))
    frame = frame_panel(photo.size, ImageView(0, -120, 480, 360), GRID)

    before = paint_photo(photo, frame)
    after = paint_patches(before, frame, np.zeros(GRID, bool))

    assert frame.is_padded
    assert not frame.is_cropped
    assert np.all(before[:120] == np.array(PADDING))
    assert np.all(before[360:] == np.array(PADDING))
    assert np.all(after[:120] < before[:120])


def test_a_small_photo_is_enlarged() -> None:
    frame = frame_panel((12, 9), ImageView(1.5, 0, 10.5, 9), (16, 16))

    assert paint_photo(colourful(12, 9), frame).shape == (480, 640, 3)


def test_a_long_panorama_is_cut_beside_its_crop_and_fades_out_there() -> None:
    frame = frame_panel((3000, 100), ImageView(1450, 0, 1550, 100), GRID)

    panel = paint_photo(Image.new("RGB", (3000, 100)), frame)

    assert panel.shape == (480, 960, 3)
    assert panel[:, [0, -1]].min() > 250


@pytest.mark.parametrize("grid", [(24, 24), (16, 16), (37, 37), (27, 27), (24, 16)])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1000, 10), (10, 1000), (1, 1)])
def test_every_patch_has_whole_pixels_and_can_be_seen(
    grid: tuple[int, int], size: tuple[int, int]
) -> None:
    frame = frame_panel(size, ImageView(0, 0, *size), grid)

    assert frame.x.cell >= 6
    assert frame.y.cell >= 6
    assert frame.x.size == frame.x.cell * grid[1] <= 1100
    assert frame.y.size == frame.y.cell * grid[0] <= 1100


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, int], ImageView]:
    """A photo and a view that a resize with a crop or a padding can give."""
    width, height = draw(st.integers(40, 300)), draw(st.integers(40, 300))
    kind = draw(st.sampled_from(["crop", "squash", "pad", "corner"]))
    if kind == "squash":
        return (width, height), ImageView(0, 0, width, height)
    if kind == "corner":  # a crop in one direction and a padding in the other
        return (width, height), ImageView(width / 4, -height / 4, width * 3 / 4, height * 5 / 4)
    edge = min(width, height) if kind == "crop" else max(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    return (width, height), ImageView(left, top, left + edge, top + edge)


@settings(max_examples=100, deadline=None)
@given(photo_and_view=views(), grid=st.sampled_from([(24, 24), (16, 16), (37, 37)]))
def test_every_patch_shows_the_part_of_the_photo_that_the_model_has_there(
    photo_and_view: tuple[tuple[int, int], ImageView], grid: tuple[int, int]
) -> None:
    (width, height), view = photo_and_view
    frame = frame_panel((width, height), view, grid)
    panel = paint_photo(colourful(width, height), frame)[frame.y.view, frame.x.view]
    patches = panel.reshape(grid[0], frame.y.cell, grid[1], frame.x.cell, 3).mean(axis=(1, 3))
    x = view.left + (np.arange(grid[1]) + 0.5) * view.width / grid[1]
    y = view.top + (np.arange(grid[0]) + 0.5) * view.height / grid[0]

    # Beyond this margin neither a patch nor the resizing reaches across the photo's edge.
    margin_x, margin_y = 3 + view.width / grid[1], 3 + view.height / grid[0]
    inside = ((y > margin_y) & (y < height - margin_y))[:, None] & (
        (x > margin_x) & (x < width - margin_x)
    )
    outside = ((y < -margin_y) | (y > height + margin_y))[:, None] | (
        (x < -margin_x) | (x > width + margin_x)
    )

    red = np.broadcast_to(x * 255 / width, grid)
    green = np.broadcast_to((y * 255 / height)[:, None], grid)
    np.testing.assert_allclose(patches[..., 0][inside], red[inside], atol=4)
    np.testing.assert_allclose(patches[..., 1][inside], green[inside], atol=4)
    assert np.all(patches[inside][:, 2] > 250)
    assert np.all(patches[outside] == np.array(PADDING))
