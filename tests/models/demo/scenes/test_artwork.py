import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from atp_models.demo.parts import Part
from atp_models.demo.scenes.artwork import Artwork
from atp_models.demo.scenes.vocabulary import Picture
from atp_runtime.errors import CheckFailedError

DOG = Picture("dog", "1f436")
PLANE = Picture("airplane", "2708-fe0f")


def encoded(image: Image.Image, format_: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, lossless=True)
    return stream.getvalue()


def framed(colour: str) -> Image.Image:
    """A box of 20 x 10 in the transparent middle of 64 x 64."""
    image = Image.new("RGBA", (64, 64))
    image.paste(colour, (30, 40, 50, 50))
    return image


@pytest.mark.parametrize(
    ("style", "folder", "kind"),
    [("noto", "img/google/64", "png"), ("fluent", "assets", "webp")],
)
def test_artwork_is_found_with_or_without_the_variation_selector(
    make_tarball: Callable[..., Part], tmp_path: Path, style: str, folder: str, kind: str
) -> None:
    files = {
        f"{folder}/1f436.{kind}": encoded(framed("red"), kind),
        f"{folder}/2708.{kind}": encoded(framed("blue"), kind),
        f"{folder}/2709.{kind}": b"another one, not even an image",
    }
    part = make_tarball(tmp_path, "tiny-art", files)
    artwork = Artwork.read(tmp_path / part.archive, style, [DOG, PLANE])
    assert artwork.at_size(DOG, 20).getpixel((10, 5)) == (255, 0, 0, 255)
    assert artwork.at_size(PLANE, 20).getpixel((10, 5)) == (0, 0, 255, 255)


def test_missing_artwork_is_named(make_tarball: Callable[..., Part], tmp_path: Path) -> None:
    part = make_tarball(tmp_path, "tiny-art", {})
    with pytest.raises(CheckFailedError, match="1f436"):
        Artwork.read(tmp_path / part.archive, "noto", [DOG])


@pytest.mark.parametrize("size", [20, 47, 140])
def test_longer_side_of_what_is_seen_gets_the_size(
    make_tarball: Callable[..., Part], tmp_path: Path, size: int
) -> None:
    files = {"img/google/64/1f436.png": encoded(framed("red"), "png")}
    part = make_tarball(tmp_path, "tiny-art", files)
    picture = Artwork.read(tmp_path / part.archive, "noto", [DOG]).at_size(DOG, size)
    assert picture.size == (size, round(size / 2))
    assert picture.getextrema()[3] == (255, 255)
