"""The artwork of the scenes, read from packages of the npm registry.

The packages are `atp_models.demo.parts.NOTO_ARTWORK` and `FLUENT_ARTWORK`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from atp_models.demo.scenes.vocabulary import PICTURES, Picture
from atp_runtime.errors import CheckFailedError

_OPAQUE = 16  # alpha above which a pixel is seen
_MEMBER = {
    "noto": "package/img/google/64/{code}.png",
    "fluent": "package/assets/{code}.webp",
}


class Artwork:
    """Pictures of one style, cut to what is not transparent.

    Args:
        images: RGBA, by `Picture.code`.
    """

    def __init__(self, images: dict[str, Image.Image]) -> None:
        self._images = images

    @classmethod
    def read(cls, archive: Path, style: str, pictures: Iterable[Picture] = PICTURES) -> Artwork:
        """Read the artwork out of a package's archive.

        Args:
            archive: The `.tgz` file.
            style: "noto" or "fluent": the package it is.
            pictures: What is wanted.

        Raises:
            CheckFailedError: It lacks a picture.
        """
        wanted = {picture.code for picture in pictures}
        found: dict[str, Image.Image] = {}
        with tarfile.open(archive, "r:gz") as package:
            names = {_MEMBER[style].format(code=code): code for code in wanted}
            # Packages differ in whether they write the variation selector.
            names |= {_MEMBER[style].format(code=_bare(code)): code for code in wanted}
            for member in package:
                if member.name in names and (file := package.extractfile(member)):
                    found[names[member.name]] = _cut(Image.open(io.BytesIO(file.read())))
        missing = sorted(wanted - set(found))
        if missing:
            raise CheckFailedError(
                f"{archive} has no artwork for {', '.join(missing)}",
                why="scenes are drawn with it",
                fix="use the pinned package named in atp_models.demo.parts",
            )
        return cls(found)

    def at_size(self, picture: Picture, size: int) -> Image.Image:
        """A picture, RGBA, its longer side scaled to `size` pixels."""
        image = self._images[picture.code]
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)


def _bare(code: str) -> str:
    return code.removesuffix("-fe0f")


def _cut(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    seen = np.asarray(rgba)[..., 3] > _OPAQUE
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return rgba.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
