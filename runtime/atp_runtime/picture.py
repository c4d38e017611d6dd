"""Draws which patches of a photo the model still sees after each pruning point."""

from __future__ import annotations

import errno
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from atp_runtime.errors import InputError, MachineError
from atp_runtime.panel import (
    PADDING,
    PanelFrame,
    Pixels,
    darken,
    frame_panel,
    paint_patches,
    paint_photo,
)
from atp_runtime.preprocess import ImageView

_PAPER = (255, 255, 255)
_INK = (32, 36, 42)
_FAINT_INK = (92, 98, 106)
_CAPTION_SIZE = 20
_CAPTION_LINE = 24
_LEGEND_SIZE = 17
_SWATCH = 24
_CAPTION_GAP = 10
_GAP = 28
_MARGIN = 32
_WIDEST_PAGE = 2300

_FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 92, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 92, "subsampling": 0},
}


@dataclass(frozen=True, eq=False)
class PointView:
    """The patches that are left after a pruning point.

    Attributes:
        layer: The decoder layer (0-indexed) that dropped patches no longer enter; None where
            they never enter the decoder.
        kept: bool [rows, columns] of the patch grid.
        merged: Tokens beside them that are averages of several patches.
    """

    layer: int | None
    kept: npt.NDArray[np.bool_]
    merged: int = 0

    @property
    def caption(self) -> str:
        """The line above the panel."""
        count, total = int(self.kept.sum()), self.kept.size
        where = "decoder" if self.layer is None else f"layer {self.layer}"
        more = f", {self.merged} merged" if self.merged else ""
        return f"{where}: {count} of {total} kept ({_percent(count, total)}){more}"


def draw_pruning(
    photo: Image.Image, view: ImageView, grid: tuple[int, int], kept: Sequence[PointView]
) -> Image.Image:
    """Draws the photo as the model gets it and once more for each pruning point.

    Kept patches look as in the photo, dropped ones are dark and grey, what the preprocessing
    cropped away is pale and hatched.

    Args:
        photo: The upright original image.
        view: What of it the model sees.
        grid: Rows and columns of the model's patches.
        kept: The pruning points in the model's order.

    Returns:
        An image of mode RGB.

    Raises:
        ValueError: A point's patches are not of the shape of the grid.
    """
    for point in kept:
        if point.kept.shape != tuple(grid):
            raise ValueError(f"layer {point.layer}: patches {point.kept.shape}, grid {grid}")
    frame = frame_panel(photo.size, view, grid)
    base = paint_photo(photo.convert("RGB"), frame)
    panels = [_Panel(f"input: {grid[0] * grid[1]} tokens", base)]
    panels += [_Panel(p.caption, paint_patches(base, frame, p.kept)) for p in kept]
    return _lay_out(panels, _legend(base, frame, any_dropped=any(not p.kept.all() for p in kept)))


@dataclass(frozen=True, eq=False)
class _Panel:
    caption: str
    pixels: Pixels


def _percent(count: int, total: int) -> str:
    """In whole percent, but never 0 % or 100 % for almost none or almost all."""
    share = 100 * count / total
    if share in (0, 100) or 1 <= share <= 99:
        return f"{share:.0f} %"
    return f"{min(max(share, 0.1), 99.9):.1f} %"


def _legend(base: Pixels, frame: PanelFrame, *, any_dropped: bool) -> list[_Panel]:
    """The swatches and words that explain what occurs in the picture."""
    view = base[frame.y.view, frame.x.view]
    small = np.asarray(_to_image(view).resize((_SWATCH, _SWATCH)), dtype=np.float32)
    entries = []
    if any_dropped:
        entries += [_Panel("kept", small), _Panel("dropped", darken(small))]
    if frame.is_cropped:
        entries.append(_Panel("cropped away, never seen by the model", _hatched_swatch()))
    if frame.is_padded:
        entries.append(_Panel("padding around the photo", np.full_like(small, PADDING)))
    return entries


def _hatched_swatch() -> Pixels:
    rows, columns = np.indices((_SWATCH, _SWATCH))
    grey = np.where((rows + columns) % 6 == 0, 170, 232).astype(np.float32)
    return np.repeat(grey[..., None], 3, axis=2)


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _lay_out(panels: Sequence[_Panel], legend: Sequence[_Panel]) -> Image.Image:
    """Panels in rows of equal length, the legend below."""
    font = ImageFont.load_default(_CAPTION_SIZE)
    line = _CAPTION_LINE + _CAPTION_GAP
    height, width, _ = panels[0].pixels.shape
    step_x = max(width, *(math.ceil(font.getlength(p.caption)) for p in panels)) + _GAP
    step_y = line + height + _GAP
    fitting = max(1, (_WIDEST_PAGE - 2 * _MARGIN + _GAP) // step_x)
    rows = math.ceil(len(panels) / fitting)
    per_row = math.ceil(len(panels) / rows)

    inner = per_row * step_x - _GAP
    places, legend_height = _flow(legend, inner)
    page_height = rows * step_y - _GAP + legend_height + 2 * _MARGIN
    page = Image.new("RGB", (inner + 2 * _MARGIN, page_height), _PAPER)
    draw = ImageDraw.Draw(page)
    for index, panel in enumerate(panels):
        x, y = _MARGIN + index % per_row * step_x, _MARGIN + index // per_row * step_y
        draw.text((x, y), panel.caption, _INK, font)
        page.paste(_to_image(panel.pixels), (x, y + line))
    for entry, (x, y) in zip(legend, places, strict=True):
        _draw_entry(page, entry, (_MARGIN + x, _MARGIN + rows * step_y - _GAP + y))
    return page


def _flow(legend: Sequence[_Panel], width: int) -> tuple[list[tuple[int, int]], int]:
    """Places of the entries, from left to right in lines, and the height of all lines."""
    font = ImageFont.load_default(_LEGEND_SIZE)
    places: list[tuple[int, int]] = []
    x, y = 0, _GAP
    for entry in legend:
        length = _SWATCH + _CAPTION_GAP + math.ceil(font.getlength(entry.caption))
        if x > 0 and x + length > width:
            x, y = 0, y + _SWATCH + _CAPTION_GAP
        places.append((x, y))
        x += length + _GAP
    return places, y + _SWATCH if legend else 0


def _draw_entry(page: Image.Image, entry: _Panel, place: tuple[int, int]) -> None:
    x, y = place
    page.paste(_to_image(entry.pixels), (x, y))
    font = ImageFont.load_default(_LEGEND_SIZE)
    middle = (x + _SWATCH + _CAPTION_GAP, y + _SWATCH / 2)
    ImageDraw.Draw(page).text(middle, entry.caption, _FAINT_INK, font, anchor="lm")


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes a picture, whole or not at all.

    Args:
        image: Of mode RGB.
        path: File to write or to replace; its suffix says the format (.png, .jpg, .jpeg).

    Raises:
        InputError: The suffix is unknown or the file cannot be written there.
        MachineError: The disk is full.
    """
    options = _FORMATS.get(path.suffix.lower())
    if options is None:
        raise InputError(
            f"cannot write a picture to {path}",
            why=f"the suffix {path.suffix!r} names none of the formats {', '.join(_FORMATS)}",
            fix=f"use a name such as {path.stem or 'pruning'}.png",
        )
    try:
        _replace_file(image, _target_of(path), options)
    except (OSError, ValueError) as error:
        raise _write_failure(path, error) from error


def _target_of(path: Path) -> Path:
    # A link is written through, as by any program that opens the file.
    target = Path(os.path.realpath(path))
    reason = None
    if not target.parent.is_dir():
        reason = f"there is no directory {target.parent}"
    elif target.exists() and not target.is_file():
        reason = "what is there already is not a regular file"
    elif target.exists() and not os.access(target, os.W_OK):
        reason = "the file that is there already is write-protected"
    if reason is not None:
        raise InputError(
            f"cannot write a picture to {path}", why=reason, fix="pass the path of another file"
        )
    return target


def _replace_file(image: Image.Image, target: Path, options: dict[str, Any]) -> None:
    partial = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with partial.open("xb") as file:
            image.save(file, **options)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _write_failure(path: Path, error: OSError | ValueError) -> InputError | MachineError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    what = f"cannot write a picture to {path}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(what, why=reason, fix="free some disk space and run it again")
    return InputError(what, why=reason, fix="pass the path of a file in a directory of yours")
