"""What `load_image` accepts, which pixels it gives, and how it refuses the rest."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image as reference_load_image

from atp_runtime import images
from atp_runtime.errors import AtpError, InputError
from atp_runtime.images import load_image

ORIENTATION = 0x0112


def photo_file(name: str) -> Path:
    """A file of the sample photos that are part of scikit-image's wheel."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / name


def photo(width: int = 61, height: int = 37) -> Image.Image:
    return Image.open(photo_file("chelsea.png")).convert("RGB").resize((width, height))


def reference_pixels(path: Path) -> np.ndarray:
    """What Transformers opens, [height, width, channel]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about palettes with alpha
        return np.asarray(reference_load_image(str(path)))


def with_alpha() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def animation(path: Path) -> None:
    frames = [photo().quantize(16), photo().rotate(90).quantize(16), photo().rotate(180)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def save_variant(kind: str, path: Path) -> None:
    if kind.startswith("exif"):
        exif = Image.Exif()
        exif[ORIENTATION] = int(kind.removeprefix("exif"))
        photo().save(path, exif=exif)
    elif kind == "animated":
        animation(path)
    elif kind == "palette-key":
        photo().quantize(16).save(path, transparency=3)
    elif kind == "palette-alpha":
        photo().quantize(16).save(path, transparency=bytes(range(0, 256, 16)))
    elif kind == "rgb-key":
        photo().save(path, transparency=photo().getpixel((5, 5)))
    elif kind == "gray-key":
        photo().convert("L").save(path, transparency=120)
    elif kind == "16-bit":
        Image.fromarray(np.arange(61 * 37, dtype=np.uint16).reshape(37, 61)).save(path)
    elif kind == "RGBA":
        with_alpha().save(path)
    elif kind == "LA":
        with_alpha().convert("LA").save(path)
    else:
        photo().convert(kind).save(path)


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    photo(24, 16).save(buffer, format=suffix)
    return buffer.getvalue()


VARIANTS = [
    *(("RGB", suffix) for suffix in ("png", "jpg", "webp", "bmp", "tif", "ppm", "tga", "jp2")),
    *((f"exif{orientation}", "jpg") for orientation in range(1, 9)),
    ("exif6", "png"),
    ("exif5", "tif"),
    ("exif8", "webp"),
    ("1", "png"),
    ("L", "png"),
    ("L", "jpg"),
    ("LA", "png"),
    ("P", "png"),
    ("P", "gif"),
    ("RGBA", "png"),
    ("RGBA", "webp"),
    ("CMYK", "jpg"),
    ("CMYK", "tif"),
    ("YCbCr", "tif"),
    ("I", "tif"),
    ("F", "tif"),
    ("16-bit", "png"),
    ("16-bit", "tif"),
    ("palette-key", "png"),
    ("palette-key", "gif"),
    ("palette-alpha", "png"),
    ("rgb-key", "png"),
    ("gray-key", "png"),
    ("animated", "gif"),
    ("animated", "png"),
    ("animated", "webp"),
    ("animated", "tif"),
]


@pytest.mark.parametrize(("kind", "suffix"), VARIANTS)
def test_pixels_equal_transformers_for_every_kind_of_image(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"image.{suffix}"
    save_variant(kind, path)

    image = load_image(path)

    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), reference_pixels(path))


@pytest.mark.parametrize(
    "name",
    ["astronaut.png", "rocket.jpg", "horse.png", "logo.png", "no_time_for_that_tiny.gif"],
)
def test_pixels_equal_transformers_for_real_photos(name: str) -> None:
    image = load_image(str(photo_file(name)))

    np.testing.assert_array_equal(np.asarray(image), reference_pixels(photo_file(name)))


def test_photo_stands_upright_when_exif_says_it_was_taken_sideways(tmp_path: Path) -> None:
    upright = photo(40, 24)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was turned, so viewers turn the picture by 270 degrees
    sideways = upright.transpose(Image.Transpose.ROTATE_90)
    sideways.save(tmp_path / "photo.png", exif=exif)

    image = load_image(tmp_path / "photo.png")

    np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))


def test_an_opened_image_is_converted_and_left_as_it_was(tmp_path: Path) -> None:
    save_variant("exif6", tmp_path / "photo.jpg")
    opened = Image.open(tmp_path / "photo.jpg")

    image = load_image(opened)

    assert image is not opened
    assert image.size == (37, 61)
    assert opened.size == (61, 37)
    np.testing.assert_array_equal(np.asarray(image), reference_pixels(tmp_path / "photo.jpg"))


def test_an_rgb_image_is_copied_so_that_drawing_on_it_spares_the_original() -> None:
    original = photo()

    image = load_image(original)
    image.paste((0, 0, 0), (0, 0, *image.size))

    np.testing.assert_array_equal(np.asarray(original), np.asarray(photo()))


def test_a_missing_file_is_named_when_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no_such\.png does not exist"):
        load_image(tmp_path / "no_such.png")


def test_a_file_used_as_a_directory_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")

    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "photo.png" / "inner.png")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        load_image(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InputError, match="not a regular file"):
        load_image(tmp_path / "pipe")


def test_a_web_address_is_refused_with_the_advice_to_download() -> None:
    with pytest.raises(InputError) as refusal:
        load_image("https://example.org/photo.jpg")

    assert "download" in refusal.value.fix


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 5000 + ".png"])
def test_an_impossible_path_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        load_image(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()

    with pytest.raises(InputError, match="is empty"):
        load_image(tmp_path / "empty.jpg")


@pytest.mark.parametrize("content", [b"just some text\n", b"%PDF-1.7\n", bytes(512)])
def test_a_file_that_is_no_image_is_refused_with_the_formats_to_use(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(content)

    with pytest.raises(InputError, match="not an image") as refusal:
        load_image(tmp_path / "photo.png")

    assert "PNG or JPEG" in refusal.value.fix


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(suffix: str, fraction: float, tmp_path: Path) -> None:
    content = encoded(suffix)
    (tmp_path / "photo").write_bytes(content[: int(len(content) * fraction)])

    with pytest.raises(InputError, match=r"damaged or incomplete|not an image"):
        load_image(tmp_path / "photo")


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_955, 10_955), (12_000, 11_000), (30_000, 30_000)])
def test_an_enormous_image_is_refused_by_its_declared_size(
    size: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))

    with pytest.raises(InputError, match="too large") as refusal:
        load_image(tmp_path / "bomb.png")

    assert "120 megapixels" in refusal.value.why


def test_the_largest_allowed_size_is_let_through_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_header(12_000, 10_000))

    with pytest.raises(InputError, match="damaged"):  # there are no pixels behind the header
        load_image(tmp_path / "large.png")


def test_the_pixel_limit_holds_for_an_opened_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 61 * 37 - 1)

    with pytest.raises(InputError, match="61 x 37 pixels"):
        load_image(photo())


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="no pixels"):
        load_image(Image.new("RGB", size))


def test_no_warning_escapes_from_a_palette_with_alpha(tmp_path: Path) -> None:
    save_variant("palette-alpha", tmp_path / "image.png")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(tmp_path / "image.png")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_damaged_bytes_give_an_image_or_a_clear_refusal(
    data: st.DataObject, suffix: str, tmp_path: Path
) -> None:
    content = bytearray(encoded(suffix))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "image").write_bytes(content[: data.draw(st.integers(1, len(content)))])

    outcome = image_or_refusal(tmp_path / "image")

    if isinstance(outcome, AtpError):
        assert outcome.why
        assert outcome.fix
    else:
        assert outcome.mode == "RGB"


def image_or_refusal(path: Path) -> Image.Image | AtpError:
    try:
        return load_image(path)
    except AtpError as refusal:
        return refusal
