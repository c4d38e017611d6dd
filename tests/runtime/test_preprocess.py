"""The preprocessing equals Transformers' Pillow processors, and its view tells what is seen."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import load_image as reference_load_image

from atp_runtime.errors import InputError
from atp_runtime.images import load_image
from atp_runtime.preprocess import ImageProcessor, ImageView, PreprocessedImage

# The fields as the checkpoints publish them.
CLIP_336 = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
CLIP_336_OLD = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "crop_size": 336,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}
SIGLIP_384 = {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": None,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "size": {"height": 384, "width": 384},
}
DINOV2 = {
    "image_processor_type": "BitImageProcessor",
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"shortest_edge": 256},
}
LLAVA_PAD = {
    "image_processor_type": "LlavaImageProcessor",
    "do_pad": True,
    "crop_size": {"height": 336, "width": 336},
    "size": {"shortest_edge": 336},
}
PUBLISHED = {
    "clip-336": CLIP_336,
    "clip-336-old": CLIP_336_OLD,
    "siglip-384": SIGLIP_384,
    "dinov2": DINOV2,
    "llava-pad": LLAVA_PAD,
}
CLASSES = ["CLIP", "Siglip", "Bit", "Llava", "ViT"]


def write_config(fields: Any, directory: Path, name: str = "preprocessor_config.json") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def reference(fields: dict[str, Any], image: Image.Image, directory: Path) -> np.ndarray:
    """float32 [channel, height, width] of Transformers' own processor for these fields."""
    write_config(fields, directory / "reference")
    processor = AutoImageProcessor.from_pretrained(directory / "reference", backend="pil")
    assert processor.backend == "pil"
    values = processor(image, return_tensors="np")["pixel_values"][0]
    return values.astype(np.float32)


def ours(fields: dict[str, Any], image: Image.Image, directory: Path) -> PreprocessedImage:
    return ImageProcessor.from_file(write_config(fields, directory / "ours"))(image)


def assert_equal_pixels(
    fields: dict[str, Any], image: Image.Image, directory: Path
) -> PreprocessedImage:
    result = ours(fields, image, directory)
    assert result.pixel_values.dtype == np.float32
    assert result.pixel_values.flags.c_contiguous
    np.testing.assert_allclose(
        result.pixel_values, reference(fields, image, directory), rtol=0, atol=1e-6
    )
    return result


def photo_file(name: str) -> Path:
    """A file of the sample photos that are part of scikit-image's wheel."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / name


def resized_photo(width: int, height: int) -> Image.Image:
    return Image.open(photo_file("chelsea.png")).convert("RGB").resize((width, height))


def save_sideways(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo_file("rocket.jpg")).save(path, exif=exif)


def photo_of_kind(kind: str, directory: Path) -> Path:
    path = directory / f"{kind}.png"
    photo = Image.open(photo_file("coffee.png")).convert("RGB")
    if kind == "exif":
        path = path.with_suffix(".jpg")
        save_sideways(path)
    elif kind == "alpha":
        photo.putalpha(Image.linear_gradient("L").resize(photo.size))
        photo.save(path)
    elif kind == "palette":
        photo.quantize(64).save(path, transparency=7)
    elif kind == "grayscale":
        photo.convert("L").save(path)
    elif kind == "jpeg":
        return photo_file("rocket.jpg")
    else:
        return photo_file("astronaut.png")
    return path


@pytest.mark.parametrize("kind", ["png", "jpeg", "palette", "alpha", "grayscale", "exif"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_pixel_values_equal_transformers_for_photo_files(
    name: str, kind: str, tmp_path: Path
) -> None:
    path = photo_of_kind(kind, tmp_path)
    result = ours(PUBLISHED[name], load_image(path), tmp_path)
    expected = reference(PUBLISHED[name], reference_load_image(str(path)), tmp_path)

    np.testing.assert_allclose(result.pixel_values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(641, 427), (333, 500), (37, 23), (1, 1), (9, 301), (336, 336)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_pixel_values_equal_transformers_for_odd_sizes(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    assert_equal_pixels(PUBLISHED[name], resized_photo(*size), tmp_path)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("suffix", ["", "Pil", "Fast"])
def test_missing_fields_take_the_defaults_of_the_class(
    name: str, suffix: str, tmp_path: Path
) -> None:
    image = resized_photo(301, 199)
    result = ours({"image_processor_type": f"{name}ImageProcessor{suffix}"}, image, tmp_path)
    expected = reference({"image_processor_type": f"{name}ImageProcessor"}, image, tmp_path)

    np.testing.assert_allclose(result.pixel_values, expected, rtol=0, atol=1e-6)


def test_a_file_that_names_no_class_is_read_as_transformers_reads_llava(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    model = {"model_type": "llava"}
    (tmp_path / "reference" / "config.json").write_text(json.dumps(model), encoding="utf-8")

    assert_equal_pixels({"do_pad": True, "size": 100}, resized_photo(301, 199), tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK"])
def test_an_image_that_skipped_load_image_is_converted_like_transformers(
    mode: str, tmp_path: Path
) -> None:
    image = resized_photo(90, 60)
    if mode in {"RGBA", "LA"}:
        image.putalpha(Image.linear_gradient("L").resize(image.size))

    assert_equal_pixels(CLIP_336, image.convert(mode), tmp_path)


def test_an_image_that_is_not_rgb_is_refused_when_the_processor_does_not_convert(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="colour mode L"):
        ours({**SIGLIP_384, "do_convert_rgb": False}, Image.new("L", (9, 9)), tmp_path)


VARIATIONS: list[dict[str, Any]] = [
    {"size": 100},
    {"size": [90, 130]},
    {"size": {"height": 90, "width": 130}},
    {"size": {"shortest_edge": 90}},
    {"size": {"shortest_edge": 90, "longest_edge": 110}},
    {"size": {"shortest_edge": 90, "longest_edge": 1000}},
    {"size": {"max_height": 90, "max_width": 130}},
    {"size": {"shortest_edge": 90}, "crop_size": 100},
    {"size": {"shortest_edge": 90}, "crop_size": [120, 77]},
    {"size": {"shortest_edge": 90}, "crop_size": {"height": 77, "width": 121}},
    {"size": 50, "default_to_square": True},
    {"size": 50, "default_to_square": False},
    {"do_resize": False},
    {"do_center_crop": False},
    {"do_center_crop": True, "crop_size": {"height": 90, "width": 91}},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
    {"rescale_factor": 1},
    {"image_mean": 0.5, "image_std": 0.25},
    {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
    {"do_convert_rgb": False},
    {"do_pad": True},
    {"do_pad": True, "pad_size": {"height": 600, "width": 700}},
    {"do_pad": True, "pad_size": 700, "do_center_crop": False},
    {"do_resize": None, "size": None, "resample": None, "default_to_square": None},
    {"do_center_crop": None, "crop_size": None},
    {"do_rescale": None, "rescale_factor": None},
    {"do_normalize": None, "image_mean": None, "image_std": None},
    {"do_convert_rgb": None, "do_pad": None, "pad_size": None},
    *({"resample": resample} for resample in range(6)),
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("fields", VARIATIONS, ids=str)
def test_every_shape_of_the_fields_means_what_it_means_to_transformers(
    fields: dict[str, Any], name: str, tmp_path: Path
) -> None:
    if name == "Llava" and fields.get("do_pad"):
        fields = {**fields, "pad_size": None}
    fields = {"image_processor_type": f"{name}ImageProcessor", **fields}

    assert_equal_pixels(fields, resized_photo(211, 317), tmp_path)


def test_fields_are_found_when_nested_in_a_processor_config(tmp_path: Path) -> None:
    nested = {"image_processor": SIGLIP_384, "patch_size": 14, "processor_class": "LlavaProcessor"}
    path = write_config(nested, tmp_path, "processor_config.json")

    result = ImageProcessor.from_file(path)(resized_photo(50, 40))

    assert result.pixel_values.shape == (3, 384, 384)


def test_padding_to_a_square_needs_the_mean_even_without_normalising(tmp_path: Path) -> None:
    path = write_config({**LLAVA_PAD, "do_normalize": False, "image_mean": None}, tmp_path)

    assert "image_mean" in refusal_of(path).what


@st.composite
def processor_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Any chain of padding, resizing and cropping, in plain 8-bit values."""
    edge = st.integers(8, 70)
    size = draw(
        st.one_of(
            st.fixed_dictionaries({"shortest_edge": edge}),
            st.fixed_dictionaries({"height": edge, "width": edge}),
            st.fixed_dictionaries({"shortest_edge": edge, "longest_edge": edge}),
            st.fixed_dictionaries({"max_height": edge, "max_width": edge}),
        )
    )
    return {
        "image_processor_type": draw(
            st.sampled_from(["LlavaImageProcessor", "CLIPImageProcessor"])
        ),
        "do_pad": draw(st.booleans()),
        "do_resize": draw(st.booleans()),
        "size": size,
        "do_center_crop": draw(st.booleans()),
        "crop_size": {"height": draw(edge), "width": draw(edge)},
        "do_rescale": False,
        "do_normalize": False,
    }


# Not so thin that nothing would be left of a side when the other becomes 8 pixels.
photo_sizes = st.tuples(st.integers(16, 120), st.integers(16, 120))


@settings(max_examples=60, deadline=None)
@given(fields=processor_fields(), size=photo_sizes)
def test_any_chain_of_steps_equals_transformers(
    fields: dict[str, Any], size: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert_equal_pixels(fields, resized_photo(*size), tmp_path_factory.mktemp("chain"))


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


def refusal_of(path: Path) -> InputError:
    with pytest.raises(InputError) as refusal:
        ImageProcessor.from_file(path)
    return refusal.value


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
