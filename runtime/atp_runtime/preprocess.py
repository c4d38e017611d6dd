"""Makes a vision model's input from a photo: resize, crop, pad, rescale, normalise.

The arithmetic, its precision and its order are those of the Pillow processors of Transformers
(`transformers/image_processing_backends.py`), so the result is the same number for number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from atp_runtime.errors import InputError
from atp_runtime.processor_config import ProcessorConfig, read_processor_config
from atp_runtime.resizing import Extent

MAX_WORKING_PIXELS = 200_000_000
"""Largest intermediate image, in pixels: padding and resizing can blow up a thin photo."""


@dataclass(frozen=True)
class ImageView:
    """The box of the upright original image that the model's rectangle of pixels shows.

    Coordinates are in pixels of the original image, x to the right and y downwards, with (0, 0)
    the outer corner of its first pixel. The box lies partly outside of the image where padding
    is shown.

    Attributes:
        left: x of the left edge.
        top: y of the upper edge.
        right: x of the right edge.
        bottom: y of the lower edge.
    """

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Extent in x, in pixels of the original image."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Extent in y, in pixels of the original image."""
        return self.bottom - self.top

    def window(self, shown: Extent, left: int, top: int, size: Extent) -> ImageView:
        """The view of a rectangle cut out of, or around, the pixels that show this view.

        Args:
            shown: How many pixels this view is shown with.
            left: Left edge of the rectangle in those pixels; negative is outside.
            top: Upper edge of the rectangle in those pixels; negative is outside.
            size: Size of the rectangle in those pixels.
        """
        if (left, top, size) == (0, 0, shown):
            return self
        pixel_x = self.width / shown.width
        pixel_y = self.height / shown.height
        new_left = self.left + left * pixel_x
        new_top = self.top + top * pixel_y
        return ImageView(
            new_left, new_top, new_left + size.width * pixel_x, new_top + size.height * pixel_y
        )


@dataclass(frozen=True, eq=False)
class PreprocessedImage:
    """One image as the vision stage takes it.

    Attributes:
        pixel_values: float32 [channel=3, height, width].
        view: What of the original image these pixels show.
    """

    pixel_values: npt.NDArray[np.float32]
    view: ImageView


class ImageProcessor:
    """Prepares images as a checkpoint's own processor does.

    Args:
        config: The processor's settings.
    """

    def __init__(self, config: ProcessorConfig) -> None:
        self.config = config

    @classmethod
    def from_file(cls, path: Path) -> ImageProcessor:
        """Reads the settings from `preprocessor_config.json` or `processor_config.json`.

        Raises:
            InputError: The file or one of its fields cannot be used.
        """
        return cls(read_processor_config(path))

    def __call__(self, image: Image.Image) -> PreprocessedImage:
        """Prepares one image.

        Args:
            image: An upright image, such as `load_image` returns.

        Raises:
            InputError: The image is not RGB and the processor does not convert it, or its shape
                is so extreme that resizing or padding would leave nothing or too much.
        """
        rgb = self._as_rgb(image)
        view = ImageView(0.0, 0.0, float(rgb.width), float(rgb.height))
        placed, view = self._place(rgb, view)
        values = self._scale(np.asarray(placed).transpose(2, 0, 1))
        return self._pad_to_canvas(PreprocessedImage(values, view))

    def _as_rgb(self, image: Image.Image) -> Image.Image:
        if self.config.convert_rgb:
            return _flatten(image)
        if image.mode != "RGB":
            raise InputError(
                f"the image has the colour mode {image.mode}",
                why="this image processor takes RGB and does not convert (do_convert_rgb)",
                fix="open the image with atp_runtime.images.load_image, which converts it",
            )
        return image

    def _place(self, image: Image.Image, view: ImageView) -> tuple[Image.Image, ImageView]:
        """Pads to a square, resizes and crops."""
        config = self.config
        if config.square_color is not None:
            image, view = _pad_to_square(image, view, config.square_color)
        if config.resize is not None:
            size = config.resize.apply(_extent_of(image))
            _check_working_size(_extent_of(image), size, "resized")
            image = image.resize((size.width, size.height), resample=config.resample)
        if config.crop is not None:
            image, view = _crop_center(image, view, config.crop)
        return image, view

    def _scale(self, samples: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Rescales and normalises [channel, height, width]."""
        config = self.config
        if config.rescale_factor is None:
            values = samples.astype(np.float32)
        else:
            # In double precision and then rounded, as the reference does it.
            values = (samples.astype(np.float64) * config.rescale_factor).astype(np.float32)
        if config.mean is not None and config.std is not None:
            mean = np.array(config.mean, dtype=np.float32).reshape(3, 1, 1)
            std = np.array(config.std, dtype=np.float32).reshape(3, 1, 1)
            values = (values - mean) / std
        return np.ascontiguousarray(values)

    def _pad_to_canvas(self, image: PreprocessedImage) -> PreprocessedImage:
        canvas = self.config.canvas
        if canvas is None:
            return image
        _, height, width = image.pixel_values.shape
        if height > canvas.height or width > canvas.width:
            raise InputError(
                f"the image is {width} x {height} pixels after resizing and cropping, "
                f"larger than the canvas of {canvas.width} x {canvas.height} (pad_size)",
                why="padding cannot make an image smaller",
                fix="correct size, crop_size or pad_size in the image-processor file",
            )
        beyond = ((0, 0), (0, canvas.height - height), (0, canvas.width - width))
        view = image.view.window(Extent(height, width), 0, 0, canvas)
        return PreprocessedImage(np.pad(image.pixel_values, beyond), view)


def _extent_of(image: Image.Image) -> Extent:
    return Extent(image.height, image.width)


def _flatten(image: Image.Image) -> Image.Image:
    """Converts to RGB, with whatever is transparent on white."""
    keyed = image.info.get("transparency") is not None
    if not keyed and "A" not in image.getbands():
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _pad_to_square(
    image: Image.Image, view: ImageView, color: tuple[int, int, int]
) -> tuple[Image.Image, ImageView]:
    size = _extent_of(image)
    edge = max(image.size)
    square = Extent(edge, edge)
    if size == square:
        return image, view
    _check_working_size(size, square, "padded to a square")
    left, top = (edge - size.width) // 2, (edge - size.height) // 2
    padded = Image.new("RGB", (edge, edge), color)
    padded.paste(image, (left, top))
    return padded, view.window(size, -left, -top, square)


def _crop_center(
    image: Image.Image, view: ImageView, size: Extent
) -> tuple[Image.Image, ImageView]:
    # Where the image is smaller than the crop the offset is negative, and `crop` adds black.
    left, top = (image.width - size.width) // 2, (image.height - size.height) // 2
    cropped = image.crop((left, top, left + size.width, top + size.height))
    return cropped, view.window(_extent_of(image), left, top, size)


def _check_working_size(image: Extent, result: Extent, step: str) -> None:
    pixels = result.height * result.width
    if 1 <= pixels <= MAX_WORKING_PIXELS:
        return
    limit = f"the limit is {MAX_WORKING_PIXELS / 1e6:.0f} megapixels, to bound the memory"
    raise InputError(
        f"an image of {image.width} x {image.height} pixels would be {result.width} x "
        f"{result.height} when {step}",
        why=limit if pixels else "nothing would be left of it",
        fix="crop the image to the part that matters, so that it is less long and thin",
    )
