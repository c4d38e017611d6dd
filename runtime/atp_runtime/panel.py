"""One panel of the pruning picture: the photo with the model's patches on whole pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from atp_runtime.preprocess import ImageView

_VIEW_EDGE = 480
_SHORTEST_EDGE = 48  # pixels; a panel thinner than its caption is no picture
_LONGEST_EDGE = 1000
_SMALLEST_CELL = 6
# Beside its crop, at most this share of the crop is shown of a long photo.
_LARGEST_MARGIN = 0.5
_FADE = 72
_HATCH_PERIOD = 10
PADDING = (122, 124, 128)
"""Colour of what the model sees beyond the photo."""

_FRAME = 40.0
_PAPER = 255.0
# Dropped patches are never as black as a kept one can be.
_SLATE = np.array([30, 33, 40], dtype=np.float32)
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PanelAxis:
    """Where the model's view and the photo lie along one axis of a panel.

    Attributes:
        patches: Number of patches.
        cell: Pixels of the panel to a patch.
        before: Pixels of the panel before the view.
        size: Pixels of the panel.
        photo: First pixel of the panel that shows the photo and the one past the last.
        source: The part of the photo shown there, in pixels of the photo.
        cut: Whether the photo goes on before and after the panel.
    """

    patches: int
    cell: int
    before: int
    size: int
    photo: tuple[int, int]
    source: tuple[float, float]
    cut: tuple[bool, bool]

    @property
    def view(self) -> slice:
        """Pixels of the panel that show the model's view."""
        return slice(self.before, self.before + self.patches * self.cell)


@dataclass(frozen=True)
class PanelFrame:
    """The layout that all panels of a picture share."""

    x: PanelAxis
    y: PanelAxis

    @property
    def is_cropped(self) -> bool:
        """Whether the panel shows parts of the photo that the model does not see."""
        return self.x.size > self.x.patches * self.x.cell or (
            self.y.size > self.y.patches * self.y.cell
        )

    @property
    def is_padded(self) -> bool:
        """Whether the model sees parts that the photo does not cover."""
        return any(
            axis.photo[0] > axis.view.start or axis.photo[1] < axis.view.stop
            for axis in (self.x, self.y)
        )


def frame_panel(photo: tuple[int, int], view: ImageView, grid: tuple[int, int]) -> PanelFrame:
    """Lays out a panel.

    Args:
        photo: Width and height of the photo, in pixels.
        view: What of the photo the model sees.
        grid: Rows and columns of patches.
    """
    cell_height, cell_width = _cell_size(view, grid)
    return PanelFrame(
        x=_lay_axis(photo[0], (view.left, view.right), grid[1], cell_width),
        y=_lay_axis(photo[1], (view.top, view.bottom), grid[0], cell_height),
    )


def _cell_size(view: ImageView, grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a patch in whole pixels, close to the shape it has in the photo."""
    stretch = math.sqrt(view.width / view.height)
    height = _bounded(_VIEW_EDGE / stretch / grid[0], grid[0])
    width = _bounded(_VIEW_EDGE * stretch / grid[1], grid[1])
    shape = height / width
    # Of the widths nearby, the one at which a whole height comes closest to the true shape.
    nearby = range(math.ceil(width * 0.9), math.floor(width * 1.05) + 1)
    best = min(nearby, key=lambda w: (abs(round(w * shape) / w - shape), abs(w - width)))
    return max(round(best * shape), _SMALLEST_CELL), best


def _bounded(cell: float, patches: int) -> float:
    return max(min(cell, _LONGEST_EDGE / patches), _SHORTEST_EDGE / patches, _SMALLEST_CELL)


def _lay_axis(photo: int, view: tuple[float, float], patches: int, cell: int) -> PanelAxis:
    shown = patches * cell
    scale = shown / (view[1] - view[0])
    limit = round(_LARGEST_MARGIN * shown)
    ahead, behind = round(view[0] * scale), round((photo - view[1]) * scale)
    before, after = min(max(ahead, 0), limit), min(max(behind, 0), limit)
    size = before + shown + after
    origin = view[0] - before / scale
    source = max(0.0, origin), min(float(photo), origin + size / scale)
    first = min(round((source[0] - origin) * scale), size - 1)
    last = max(round((source[1] - origin) * scale), first + 1)
    cut = ahead > limit, behind > limit
    return PanelAxis(patches, cell, before, size, (first, last), source, cut)


def paint_photo(photo: Image.Image, frame: PanelFrame) -> Pixels:
    """The photo before any pruning.

    What the model sees beyond the photo is plain grey; what it does not see is pale and hatched.

    Args:
        photo: Of mode RGB.
        frame: The layout of the panel.

    Returns:
        float32 [height, width, channel=3], 0 to 255.
    """
    x, y = frame.x, frame.y
    canvas = Image.new("RGB", (x.size, y.size), (255, 255, 255))
    canvas.paste(PADDING, (x.view.start, y.view.start, x.view.stop, y.view.stop))
    shown = photo.resize(
        (x.photo[1] - x.photo[0], y.photo[1] - y.photo[0]),
        Image.Resampling.BICUBIC,
        (x.source[0], y.source[0], x.source[1], y.source[1]),
        reducing_gap=3.0,
    )
    canvas.paste(shown, (x.photo[0], y.photo[0]))
    pixels = np.asarray(canvas, dtype=np.float32)
    panel = _fade_outside(pixels, frame)
    panel[_grow(y.view), _grow(x.view)] = _FRAME
    panel[y.view, x.view] = pixels[y.view, x.view]
    return panel


def _grow(view: slice) -> slice:
    """One pixel more at both ends."""
    return slice(max(view.start - 1, 0), view.stop + 1)


def _fade_outside(pixels: Pixels, frame: PanelFrame) -> Pixels:
    """Pale, grey and hatched; where the photo goes on beyond the panel, into the paper."""
    rows, columns = np.arange(frame.y.size), np.arange(frame.x.size)
    hatch = (rows[:, None] + columns[None, :]) % _HATCH_PERIOD == 0
    ink = (_PAPER - pixels @ _LUMINANCE) * 0.24 + hatch * 44.0
    ink *= _ramp(frame.y)[:, None] * _ramp(frame.x)[None, :]
    return np.repeat((_PAPER - ink)[..., None], 3, axis=2).astype(np.float32)


def _ramp(axis: PanelAxis) -> npt.NDArray[np.float64]:
    """1 where the panel is opaque, down to 0 at an end where the photo is cut."""
    distance = np.arange(axis.size) + 0.5
    before = distance / _FADE if axis.cut[0] else np.ones(axis.size)
    after = distance[::-1] / _FADE if axis.cut[1] else np.ones(axis.size)
    return np.minimum(np.minimum(before, after), 1.0)


def paint_patches(photo: Pixels, frame: PanelFrame, kept: npt.NDArray[np.bool_]) -> Pixels:
    """Darkens the dropped patches and outlines the kept ones.

    Args:
        photo: float32 [height, width, channel=3], see `paint_photo`.
        frame: The layout of the panel.
        kept: bool [rows, columns].

    Returns:
        float32 [height, width, channel=3], 0 to 255.
    """
    panel = photo.copy()
    view = panel[frame.y.view, frame.x.view]
    visible = kept.repeat(frame.y.cell, axis=0).repeat(frame.x.cell, axis=1)
    view[:] = np.where(visible[..., None], view, darken(view))
    view[:] = np.where(_inner_edge(visible)[..., None], view * 0.4 + 255 * 0.6, view)
    return panel


def darken(pixels: Pixels) -> Pixels:
    """How dropped patches look, float32 [height, width, channel=3]."""
    return (pixels @ _LUMINANCE)[..., None] * 0.26 + _SLATE


def _inner_edge(visible: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The visible pixels that touch an invisible one."""
    beyond = np.pad(visible, 1, constant_values=True)
    around = beyond[:-2, 1:-1] & beyond[2:, 1:-1] & beyond[1:-1, :-2] & beyond[1:-1, 2:]
    return visible & ~around
