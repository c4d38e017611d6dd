"""Remembers what the vision stage made of a photo, so that asking again does not run it again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from weakref import WeakKeyDictionary

from atp_runtime.context import ImageFeatures
from atp_runtime.image_tokens import ImageTokens
from atp_runtime.vision import Photo


class PhotoMemory:
    """The features of photos; they are forgotten together with the photo.

    Args:
        encode: The vision stages: what the decoder gets of a photo.
    """

    def __init__(self, encode: Callable[[Photo], ImageTokens]) -> None:
        self._encode = encode
        self._numbers = count()
        self._features: WeakKeyDictionary[Photo, ImageFeatures] = WeakKeyDictionary()

    def features(self, photo: Photo) -> ImageFeatures:
        """The photo's features, with the same number each time the same object is given."""
        if photo not in self._features:
            self._features[photo] = ImageFeatures(next(self._numbers), self._encode(photo))
        return self._features[photo]
