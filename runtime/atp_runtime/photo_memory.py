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
        encode: The vision stages: what the decoder gets of a photo for a question.
        asks_text: Whether that depends on the question.
    """

    def __init__(
        self, encode: Callable[[Photo, str], ImageTokens], *, asks_text: bool = False
    ) -> None:
        self._encode = encode
        self._asks_text = asks_text
        self._numbers = count()
        self._features: WeakKeyDictionary[Photo, tuple[str, ImageFeatures]] = WeakKeyDictionary()

    def features(self, photo: Photo, question: str | None = None) -> ImageFeatures:
        """The photo's features, with the same number each time the same object is given.

        Args:
            photo: The photo.
            question: What is asked about it. Where features depend on that, those for the last
                question are remembered; None takes these.
        """
        asked, found = self._features.get(photo, ("", None))
        if found is None or (self._asks_text and question not in (None, asked)):
            asked = question or ""
            found = ImageFeatures(next(self._numbers), self._encode(photo, asked))
            self._features[photo] = (asked, found)
        return found
