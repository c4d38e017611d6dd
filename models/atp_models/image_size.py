"""The size of the images that a checkpoint's image processor delivers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor

from atp_models.json_files import read_json
from atp_runtime.errors import InputError

# Any two shapes tell a fixed size from one that follows the image.
_PROBES = ((96, 64), (64, 80))
_MAX_SIDE = 8192


def processed_image_size(directory: Path) -> tuple[int, int] | None:
    """Asks the checkpoint's own image processor, by giving it two small images.

    Args:
        directory: Holds `preprocessor_config.json`, or a `processor_config.json` with the
            image processor inside (as Transformers 5 saves it), or neither.

    Returns:
        (height, width) in pixels, or None where the directory describes no image processor.

    Raises:
        InputError: The description cannot be used, or the size depends on the image, which
            no exported tower can follow.
    """
    file, fields = _description(directory)
    if file is None:
        return None
    if _longest_side(fields) > _MAX_SIDE:
        raise InputError(
            f"{file} asks for images of {_longest_side(fields)} pixels a side",
            why=f"more than {_MAX_SIDE} would not fit in memory, and no tower takes them",
            fix="restore the file from where the weights came from",
        )
    try:
        processor = AutoImageProcessor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        sizes = {
            tuple(processor(Image.new("RGB", probe), return_tensors="pt").pixel_values.shape[-2:])
            for probe in _PROBES
        }
    except (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError) as error:
        raise InputError(
            f"{file} describes no image processor that Transformers can use ({error})",
            why="the number of image tokens follows from the size it delivers",
            fix="restore the file from where the weights came from",
        ) from error
    if len(sizes) > 1:
        raise InputError(
            f"{file} makes images whose size depends on the input",
            why="an exported tower takes one size",
            fix="give the image processor a crop_size, or a size of height and width",
        )
    height, width = sizes.pop()
    return int(height), int(width)


def _description(directory: Path) -> tuple[Path | None, Mapping[str, Any]]:
    joint = directory / "processor_config.json"
    if joint.is_file():
        nested = read_json(joint).get("image_processor")
        if isinstance(nested, dict):
            return joint, nested
    own = directory / "preprocessor_config.json"
    return (own, read_json(own)) if own.is_file() else (None, {})


def _longest_side(fields: Mapping[str, Any]) -> int:
    sides = [0]
    for name in ("size", "crop_size", "pad_size"):
        size = fields.get(name)
        sides += [
            side
            for side in (size.values() if isinstance(size, dict) else [size])
            if isinstance(side, int)
        ]
    return max(sides)
