"""A question of a benchmark, whatever file it came from."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from PIL import Image, UnidentifiedImageError

from atp_runtime.errors import InputError
from atp_runtime.evaluation.keys.key import AnswerKey


@dataclass(frozen=True)
class EmbeddedImage:
    """An image inside a data file.

    Attributes:
        name: Tells it from the file's others, and where it is.
        encoded: The image file in base64.
    """

    name: str
    encoded: str = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def open(self) -> Image.Image:
        """Decodes it as far as its header.

        Raises:
            InputError: It is no image.
        """
        try:
            return Image.open(io.BytesIO(base64.b64decode(self.encoded)))
        except (binascii.Error, ValueError, UnidentifiedImageError) as error:
            raise InputError(
                f"image {self.name} is damaged: {error}",
                why="it is no image file in base64.",
                fix="download the data file again.",
            ) from error


ImageReference: TypeAlias = Path | EmbeddedImage


def opened(image: ImageReference) -> Path | Image.Image:
    """A path as it is; an image inside a data file decoded as far as its header.

    Raises:
        InputError: It is none.
    """
    return image.open() if isinstance(image, EmbeddedImage) else image


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: Unique in the data.
        prompt: What is asked, options included, without the suffix and image placeholders.
        images: What it is about; they come before the prompt.
        key: Marks its answers.
        kind: What sort of question it is, for the tables; "" if the data tells none.
        group: Tells questions that only count together, such as one with its options rotated;
            "" if it stands alone.
        numbers: Numeric fields of the record, such as how many objects the image shows.
    """

    id: str
    prompt: str
    images: tuple[ImageReference, ...]
    key: AnswerKey
    kind: str = ""
    group: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def text(self, suffix: str) -> str:
        """What is asked, with the line that its benchmark has behind each question, if any."""
        return "\n".join(filter(None, (self.prompt, suffix)))

    def sources(self) -> list[Path | Image.Image]:
        """What `Session.ask` takes; images inside the data are decoded as far as their header.

        Raises:
            InputError: One of those is none.
        """
        return [opened(image) for image in self.images]

    @property
    def unit(self) -> str:
        """What is counted: the group, or the question itself."""
        return self.group or self.id
