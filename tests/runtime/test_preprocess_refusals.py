"""Photos and configs of which no pixels can be made are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.runtime.image_processors import (
    CLIP_336,
    LLAVA_PAD,
    SIGLIP_384,
    ours,
    reference,
    resized_photo,
    write_config,
)

from atp_runtime.errors import InputError
from atp_runtime.preprocess import ImageProcessor


def refusal_of(path: Path) -> InputError:
    with pytest.raises(InputError) as refusal:
        ImageProcessor.from_file(path)
    return refusal.value


def test_an_image_that_is_not_rgb_is_refused_when_the_processor_does_not_convert(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="colour mode L"):
        ours({**SIGLIP_384, "do_convert_rgb": False}, Image.new("L", (9, 9)), tmp_path)


def test_padding_to_a_square_needs_the_mean_even_without_normalising(tmp_path: Path) -> None:
    path = write_config({**LLAVA_PAD, "do_normalize": False, "image_mean": None}, tmp_path)

    assert "image_mean" in refusal_of(path).what


def test_a_photo_too_thin_to_be_resized_is_refused_where_transformers_fails(
    tmp_path: Path,
) -> None:
    fields = {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": False,
        "do_resize": True,
        "size": {"max_height": 8, "max_width": 8},
        "do_center_crop": False,
        "do_rescale": False,
        "do_normalize": False,
    }
    thin = resized_photo(8, 65)
    with pytest.raises(InputError, match="8 x 65 pixels would be 0 x 8") as refusal:
        ours(fields, thin, tmp_path)
    assert refusal.value.why == "nothing would be left of it"
    with pytest.raises(ValueError, match="must be > 0"):
        reference(fields, thin, tmp_path)


@pytest.mark.parametrize(
    ("fields", "size", "reason"),
    [
        (CLIP_336, (1, 9000), "megapixels"),
        (LLAVA_PAD, (20_000, 1), "megapixels"),
        ({**CLIP_336, "size": {"shortest_edge": 8, "longest_edge": 9}}, (1, 900), "nothing"),
        ({**CLIP_336, "size": {"max_height": 9, "max_width": 9}}, (900, 1), "nothing"),
    ],
)
def test_an_absurdly_thin_image_is_refused_before_it_is_resized(
    fields: dict[str, Any], size: tuple[int, int], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]} pixels") as refusal:
        ours(fields, Image.new("RGB", size), tmp_path)

    assert reason in refusal.value.why


def test_an_image_larger_than_its_canvas_is_refused(tmp_path: Path) -> None:
    fields = {**CLIP_336, "do_pad": True, "pad_size": {"height": 400, "width": 300}}

    with pytest.raises(InputError, match="larger than the canvas of 300 x 400"):
        ours(fields, resized_photo(20, 20), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "336"),
        ("size", {"shortest_edge": "336"}),
        ("size", {"shortest_edge": 336.5}),
        ("size", {"shortest_edge": 0}),
        ("size", {"shortest_edge": 10**9}),
        ("size", {"height": 336}),
        ("size", {"longest_edge": 336}),
        ("size", {"edge": 336}),
        ("size", {}),
        ("size", [336]),
        ("size", True),
        ("size", None),
        ("crop_size", None),
        ("rescale_factor", None),
        ("image_mean", None),
        ("image_std", None),
        ("size", -1),
        ("crop_size", {"shortest_edge": 336}),
        ("crop_size", {"height": 0, "width": 336}),
        ("crop_size", "large"),
        ("resample", 99),
        ("resample", None),
        ("resample", "bicubic"),
        ("rescale_factor", "1/255"),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", "0.5"),
        ("image_std", [0.5, 0, 0.5]),
        ("image_std", 0),
        ("do_resize", "yes"),
        ("do_center_crop", 1),
        ("do_pad", []),
    ],
)
def test_a_field_with_an_impossible_value_is_refused_by_name(
    field: str, value: object, tmp_path: Path
) -> None:
    path = write_config({**CLIP_336, field: value}, tmp_path)

    refusal = refusal_of(path)

    assert str(path) in refusal.what
    assert field in refusal.what


def test_a_crop_without_a_size_is_refused_when_the_class_has_no_default(tmp_path: Path) -> None:
    fields = {"image_processor_type": "SiglipImageProcessor", "do_center_crop": True}

    assert "crop_size" in refusal_of(write_config(fields, tmp_path)).what


@pytest.mark.parametrize("name", ["LlavaNextImageProcessor", "Qwen2VLImageProcessor", "", 7])
def test_another_image_processor_is_refused_by_name(name: object, tmp_path: Path) -> None:
    path = write_config({**CLIP_336, "image_processor_type": name}, tmp_path)

    refusal = refusal_of(path)

    assert repr(name) in refusal.what
    assert "CLIPImageProcessor" in refusal.fix


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b'{"rescale_factor": NaN}', b"[" * 100_000],
    ids=["empty", "truncated", "binary", "nan", "deep"],
)
def test_a_file_that_is_not_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_bytes(content)

    assert str(path) in refusal_of(path).what


@pytest.mark.parametrize("content", [[], "CLIPImageProcessor", None, {"image_processor": [1]}])
def test_json_without_fields_is_refused(content: object, tmp_path: Path) -> None:
    path = write_config(content, tmp_path)

    assert "no JSON object" in refusal_of(path).what


def test_a_processor_config_without_an_image_processor_points_to_the_other_file(
    tmp_path: Path,
) -> None:
    path = write_config({"processor_class": "LlavaProcessor"}, tmp_path, "processor_config.json")

    assert "preprocessor_config.json" in refusal_of(path).fix


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    assert "cannot be read" in refusal_of(tmp_path / name).what
