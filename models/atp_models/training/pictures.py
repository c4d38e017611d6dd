"""Image files as what the vision tower takes, or as what it made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor

from atp_runtime.errors import InputError


class Pictures(Protocol):
    """Gives the network its images.

    Attributes:
        kind: The field of `TokenBatch` that they go to.
    """

    kind: str

    def stack(self, files: Sequence[Path]) -> Tensor:
        """The images [images, ...] of some files."""
        ...


class PixelValues:
    """Reads image files anew each time.

    Args:
        image_processor: The checkpoint's, of Transformers.
    """

    kind = "pixel_values"

    def __init__(self, image_processor: Any) -> None:
        self._processor = image_processor

    def stack(self, files: Sequence[Path]) -> Tensor:
        """Pixel values float32 [images, 3, height, width].

        Raises:
            InputError: A file is no image that Pillow can read.
        """
        read = [_read(file) for file in files]
        values: Tensor = self._processor(images=read, return_tensors="pt")["pixel_values"]
        return values.to(torch.float32)

    def description(self) -> str:
        """What decides on the pixels, as JSON."""
        described: str = self._processor.to_json_string()
        return described


def _read(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            # As the runtime shows photos: upright, whatever way the camera was held.
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{file} cannot be read as an image ({error})",
            why="a record shows it.",
            fix="replace the file, or remove its records.",
        ) from error
