"""Reads the image-processor file of a Hugging Face checkpoint.

That is `preprocessor_config.json`, or the newer `processor_config.json` that nests the same
fields under `image_processor`. A field that is missing takes the default of the processor class
that the file names, and null means off or absent, as in Transformers 5
(`transformers/models/*/image_processing_*.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from PIL.Image import Resampling

from atp_runtime.errors import InputError
from atp_runtime.resizing import ExactSize, Extent, FitWithin, ResizeRule, ShortestEdge
from atp_runtime.schema import from_json

Channels: TypeAlias = tuple[float, float, float]

MAX_EDGE = 10_000
"""Longest edge a size field may ask for, in pixels; no vision tower comes near it."""

_FIX = "restore the file from the checkpoint, or correct the field by hand"
_CLIP: Mapping[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
}
_VIT: Mapping[str, Any] = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": {"height": 224, "width": 224},
    "default_to_square": True,
}
_SIGLIP: Mapping[str, Any] = {
    **_VIT,
    "resample": 3,
    "default_to_square": False,
    "do_convert_rgb": True,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "LlavaImageProcessor": _CLIP,
    "SiglipImageProcessor": _SIGLIP,
    "ViTImageProcessor": _VIT,
}


@dataclass(frozen=True)
class ProcessorConfig:
    """What an image processor does, in the order in which it does it.

    Attributes:
        convert_rgb: Whether an image of another mode is composited on white and made RGB.
        square_color: Colour that pads the image to a square before it is resized, or None.
        resize: Rule for the size to resize to, or None to keep the size.
        resample: Pillow's filter for resizing; of no effect without it.
        crop: Size of the centre crop (black beyond the image), or None.
        rescale_factor: Factor on the 8-bit samples, or None.
        mean: Subtracted from each channel, or None.
        std: Divides each channel, or None.
        canvas: Size to which the result is padded with zeros at its right and bottom, or None.
    """

    convert_rgb: bool
    square_color: tuple[int, int, int] | None
    resize: ResizeRule | None
    resample: Resampling
    crop: Extent | None
    rescale_factor: float | None
    mean: Channels | None
    std: Channels | None
    canvas: Extent | None


@dataclass(frozen=True)
class _SizeField:
    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    max_height: int | None = None
    max_width: int | None = None

    def given(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if value is not None}


_Size: TypeAlias = _SizeField | tuple[int, int] | int


@dataclass(frozen=True)
class ImageProcessorFile:
    """The fields of the file that change the pixels; the file may hold others."""

    image_mean: Channels | float | None
    image_std: Channels | float | None
    resample: int | None
    size: _Size | None
    default_to_square: bool | None
    crop_size: _Size | None = None
    pad_size: _Size | None = None
    rescale_factor: float | None = 1 / 255
    do_convert_rgb: bool | None = None
    do_resize: bool | None = True
    do_center_crop: bool | None = None
    do_rescale: bool | None = True
    do_normalize: bool | None = True
    do_pad: bool | None = None


def read_processor_config(path: Path) -> ProcessorConfig:
    """Reads a `preprocessor_config.json` or `processor_config.json`.

    Args:
        path: The file.

    Returns:
        The settings, with the defaults of the processor class filled in.

    Raises:
        InputError: The file cannot be read, is not a JSON object, names an image processor that
            is not supported, or a field has an impossible value.
    """
    fields = _read_fields(path)
    kind = _processor_class(path, fields)
    known = {field.name for field in dataclasses.fields(ImageProcessorFile)}
    given = {name: value for name, value in fields.items() if name in known}
    file = from_json(ImageProcessorFile, {**_DEFAULTS[kind], **given}, source=str(path), fix=_FIX)
    square = bool(file.do_pad) and kind == "LlavaImageProcessor"
    # Without a size, Transformers pads to the largest image of the batch: for one, not at all.
    canvas = bool(file.do_pad) and not square and file.pad_size is not None
    return ProcessorConfig(
        convert_rgb=bool(file.do_convert_rgb),
        square_color=_color(path, file.image_mean) if square else None,
        resize=_resize_rule(path, file) if file.do_resize else None,
        resample=_filter(path, file.resample) if file.do_resize else Resampling.NEAREST,
        crop=_extent(path, "crop_size", file.crop_size) if file.do_center_crop else None,
        rescale_factor=_factor(path, file.rescale_factor) if file.do_rescale else None,
        mean=_channels(path, "image_mean", file.image_mean) if file.do_normalize else None,
        std=_divisors(path, file.image_std) if file.do_normalize else None,
        canvas=_extent(path, "pad_size", file.pad_size) if canvas else None,
    )


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(
            f"image-processor file {path} cannot be read",
            why=f"the system refused it: {error.strerror or error}",
            fix="check the path; LLaVA checkpoints carry it as preprocessor_config.json",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid JSON: {error}", why="its fields cannot be read", fix=_FIX
        ) from error
    if isinstance(content, dict) and "image_processor" in content:
        content = content["image_processor"]
    elif path.name == "processor_config.json":
        raise InputError(
            f"{path} has no field image_processor",
            why="this checkpoint keeps its image processor in another file",
            fix="use the preprocessor_config.json beside it",
        )
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds no JSON object of image-processor fields",
            why="the size, mean and scale of the model's input are read from it",
            fix=_FIX,
        )
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _processor_class(path: Path, fields: Mapping[str, Any]) -> str:
    """The processor class without the suffix of its backend."""
    name = fields.get("image_processor_type")
    extractor = fields.get("feature_extractor_type")
    if name is None and isinstance(extractor, str):
        name = extractor.replace("FeatureExtractor", "ImageProcessor")
    if name is None:
        # The class that Transformers takes for the model type `llava` when the file names none.
        return "LlavaImageProcessor"
    base = str(name).removesuffix("Fast").removesuffix("Pil")
    if base not in _DEFAULTS:
        raise InputError(
            f"{path}: image_processor_type {name!r} is not supported",
            why="preprocessing that is only similar would quietly make the answers worse",
            fix=f"use a checkpoint with one of {', '.join(sorted(_DEFAULTS))}",
        )
    return base


def _filter(path: Path, value: int | None) -> Resampling:
    if value not in set(Resampling):
        expected = f"the number of a Pillow filter, one of {sorted(map(int, Resampling))}"
        raise _refusal(path, "resample", value, expected)
    return Resampling(value)


def _factor(path: Path, value: float | None) -> float:
    if value is None:
        raise _refusal(path, "rescale_factor", value, "a number while do_rescale is true")
    return value


def _channels(path: Path, field: str, value: Channels | float | None) -> Channels:
    if value is None:
        raise _refusal(path, field, value, "a number or three while do_normalize is true")
    return value if isinstance(value, tuple) else (value, value, value)


def _divisors(path: Path, value: Channels | float | None) -> Channels:
    divisors = _channels(path, "image_std", value)
    if 0 in divisors:
        raise _refusal(path, "image_std", value, "other than 0, because it divides the pixels")
    return divisors


def _color(path: Path, mean: Channels | float | None) -> tuple[int, int, int]:
    """The colour of the padding: the mean, which normalises to about zero."""
    red, green, blue = (int(channel * 255) for channel in _channels(path, "image_mean", mean))
    return red, green, blue


def _resize_rule(path: Path, file: ImageProcessorFile) -> ResizeRule:
    edges = _edges(path, "size", file.size, square=bool(file.default_to_square))
    names = edges.keys()
    if names == {"height", "width"}:
        return ExactSize(Extent(**edges))
    if names == {"shortest_edge"}:
        return ShortestEdge(edges["shortest_edge"])
    if names == {"shortest_edge", "longest_edge"}:
        return ShortestEdge(edges["shortest_edge"], edges["longest_edge"])
    if names == {"max_height", "max_width"}:
        return FitWithin(Extent(edges["max_height"], edges["max_width"]))
    expected = (
        "a number, [height, width], {height, width}, {shortest_edge}, "
        "{shortest_edge, longest_edge} or {max_height, max_width}"
    )
    raise _refusal(path, "size", edges, expected)


def _extent(path: Path, field: str, value: _Size | None) -> Extent:
    edges = _edges(path, field, value, square=True)
    if edges.keys() != {"height", "width"}:
        raise _refusal(path, field, edges, "a number, [height, width] or {height, width}")
    return Extent(**edges)


def _edges(path: Path, field: str, value: _Size | None, *, square: bool) -> dict[str, int]:
    """The lengths that a size field gives, by name."""
    if value is None:
        raise _refusal(path, field, value, "given, because the step it belongs to is switched on")
    if isinstance(value, _SizeField):
        edges = value.given()
    elif isinstance(value, tuple):
        edges = {"height": value[0], "width": value[1]}
    elif square:
        edges = {"height": value, "width": value}
    else:
        edges = {"shortest_edge": value}
    if any(not 1 <= length <= MAX_EDGE for length in edges.values()):
        raise _refusal(path, field, edges, f"1 to {MAX_EDGE} pixels")
    return edges


def _refusal(path: Path, field: str, value: object, expected: str) -> InputError:
    return InputError(f"{path}: field {field} is {value}", why=f"it must be {expected}", fix=_FIX)
