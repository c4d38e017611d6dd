"""The picture has a panel per pruning point, and it is written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from atp_runtime.errors import InputError, MachineError
from atp_runtime.picture import PointView, draw_pruning, save_picture
from atp_runtime.preprocess import ImageView

GRID = (24, 24)
SQUARE = ImageView(0, 0, 96, 96)


def photo(width: int = 96, height: int = 96) -> Image.Image:
    return Image.radial_gradient("L").resize((width, height)).convert("RGB")


def points(*counts: int, grid: tuple[int, int] = GRID) -> list[PointView]:
    """Pruning points that keep the first so many patches."""
    total = grid[0] * grid[1]
    return [PointView(4 + i, (np.arange(total) < n).reshape(grid)) for i, n in enumerate(counts)]


def inked(image: Image.Image, box: tuple[int, int, int, int]) -> bool:
    """Whether there is anything but paper in the box."""
    part = image.crop(box)
    return ImageChops.difference(part, Image.new("RGB", part.size, "white")).getbbox() is not None


def difference(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int] | None:
    assert one.size == other.size
    return ImageChops.difference(one, other).getbbox()


@pytest.mark.parametrize(
    ("count", "caption"),
    [
        (576, "layer 4: 576 of 576 kept (100 %)"),
        (575, "layer 4: 575 of 576 kept (99.8 %)"),
        (233, "layer 4: 233 of 576 kept (40 %)"),
        (6, "layer 4: 6 of 576 kept (1 %)"),
        (1, "layer 4: 1 of 576 kept (0.2 %)"),
        (0, "layer 4: 0 of 576 kept (0 %)"),
    ],
)
def test_the_caption_tells_what_is_left_and_never_rounds_to_all_or_nothing(
    count: int, caption: str
) -> None:
    assert points(count)[0].caption == caption


def test_panels_stand_side_by_side_until_the_page_is_full() -> None:
    sizes = [draw_pruning(photo(), SQUARE, GRID, points(*[300] * n)).size for n in (0, 1, 3, 4)]

    widths, heights = zip(*sizes, strict=True)
    assert widths[0] < widths[1] < widths[2]
    assert widths[2] <= 2300
    assert heights[1] == heights[2]
    assert heights[3] > 1.8 * heights[2]


def test_a_pruning_point_changes_its_own_panel_only() -> None:
    one = draw_pruning(photo(), SQUARE, GRID, points(300, 200))
    other = draw_pruning(photo(), SQUARE, GRID, points(300, 150))

    box = difference(one, other)

    assert box is not None
    assert box[0] >= 32 + 2 * (480 + 28)  # the third of three panels, each 480 pixels wide


def test_the_legend_explains_only_what_occurs() -> None:
    plain = draw_pruning(photo(), SQUARE, GRID, points(576))
    pruned = draw_pruning(photo(), SQUARE, GRID, points(300))

    assert plain.height < pruned.height
    assert inked(pruned, (0, plain.height - 20, pruned.width, pruned.height))


def test_a_photo_of_another_mode_is_drawn_in_rgb() -> None:
    gray = draw_pruning(photo().convert("L"), SQUARE, GRID, points(300))

    assert difference(gray, draw_pruning(photo(), SQUARE, GRID, points(300))) is None


def test_the_photo_is_left_as_it_was() -> None:
    original = photo()
    draw_pruning(original, SQUARE, GRID, points(10))

    assert difference(original, photo()) is None


def test_patches_of_another_grid_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="layer 4"):
        draw_pruning(photo(), SQUARE, GRID, points(3, grid=(16, 16)))


edges = st.sampled_from([1, 2, 3, 17, 100, 640, 3000])


@settings(max_examples=25, deadline=None)
@given(
    width=edges,
    height=edges,
    kind=st.sampled_from(["crop", "squash", "pad"]),
    side=st.sampled_from([1, 16, 37]),
)
def test_the_picture_keeps_a_readable_format_for_any_shape_of_photo(
    width: int, height: int, kind: str, side: int
) -> None:
    edge = {"crop": min, "pad": max}.get(kind, max)(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    view = ImageView(left, top, left + edge, top + edge)
    if kind == "squash":
        view = ImageView(0, 0, width, height)

    picture = draw_pruning(photo(width, height), view, (side, side), points(1, grid=(side, side)))

    assert 300 <= picture.width <= 2300
    assert 130 <= picture.height <= 3000
    # Captions and panels stay off the edge of the page.
    assert not inked(picture, (picture.width - 20, 0, picture.width, picture.height))
    assert not inked(picture, (0, picture.height - 20, picture.width, picture.height))


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("name", ["out.png", "OUT.PNG", "out.jpg", "out.jpeg"])
def test_a_picture_is_written_in_the_format_of_its_suffix(name: str, tmp_path: Path) -> None:
    save_picture(photo(), tmp_path / name)

    with Image.open(tmp_path / name) as written:
        assert written.format == ("PNG" if "png" in name.lower() else "JPEG")
        assert written.size == (96, 96)
    assert names_in(tmp_path) == [name]


def test_a_picture_replaces_an_older_one_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")

    save_picture(photo(), tmp_path / "link.png")

    assert (tmp_path / "link.png").is_symlink()
    assert difference(Image.open(tmp_path / "real.png"), photo()) is None


def test_whoever_reads_the_older_picture_meanwhile_still_gets_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"old")

    with (tmp_path / "out.png").open("rb") as reader:
        save_picture(photo(), tmp_path / "out.png")
        assert reader.read() == b"old"


def test_a_new_picture_can_be_read_by_others_as_the_umask_allows(tmp_path: Path) -> None:
    save_picture(photo(), tmp_path / "out.png")
    (tmp_path / "other").touch()

    assert (tmp_path / "out.png").stat().st_mode == (tmp_path / "other").stat().st_mode


class FailingImage(Image.Image):
    """An image at whose encoding something happens after the first bytes."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def save(self, fp: Any, *args: Any, **options: Any) -> None:
        fp.write(b"half a picture")
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), MachineError),
        (OSError(errno.EIO, "Input/output error"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_halfway_leaves_the_older_picture_and_nothing_else(
    error: BaseException, raised: type[BaseException], tmp_path: Path
) -> None:
    (tmp_path / "out.png").write_bytes(b"old")

    with pytest.raises(raised):
        save_picture(FailingImage(error), tmp_path / "out.png")

    assert names_in(tmp_path) == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["out", "out.xyz", "out.webp", ".png", "out.png.gz"])
def test_an_unknown_suffix_is_refused_with_a_name_to_use(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        save_picture(photo(), tmp_path / name)

    assert ".png" in refusal.value.fix
    assert names_in(tmp_path) == []


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        save_picture(photo(), tmp_path / "no" / "out.png")

    assert "no directory" in refusal.value.why


def test_a_directory_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()

    with pytest.raises(InputError) as refusal:
        save_picture(photo(), tmp_path / "out.png")

    assert "not a regular file" in refusal.value.why


def test_a_directory_that_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(InputError, match="cannot write"):
        save_picture(photo(), Path("/proc/out.png"))


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 300 + ".png"])
def test_an_impossible_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        save_picture(photo(), tmp_path / name)

    assert names_in(tmp_path) == []


def test_a_write_protected_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.png").write_bytes(b"old")
    # The tests may run as root, to whom no file is protected.
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    with pytest.raises(InputError) as refusal:
        save_picture(photo(), tmp_path / "out.png")

    assert "write-protected" in refusal.value.why
    assert (tmp_path / "out.png").read_bytes() == b"old"
