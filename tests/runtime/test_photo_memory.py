import gc
from weakref import ref

import numpy as np
import pytest
from PIL import Image

from atp_runtime.image_tokens import ImageTokens, Places
from atp_runtime.photo_memory import PhotoMemory
from atp_runtime.preprocess import ImageView
from atp_runtime.vision import Photo


@pytest.fixture
def photo():
    def make(shade: int) -> Photo:
        image = Image.new("RGB", (4, 4), (shade,) * 3)
        view = ImageView(0, 0, 4, 4)
        return Photo(image, view, np.full((3, 4, 4), shade, dtype=np.float32))

    return make


class Encoder:
    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, photo: Photo, question: str) -> ImageTokens:
        self.runs += 1
        self.asked = question
        where = np.arange(4)
        return ImageTokens(photo.pixel_values[0], Places(where, where))


def test_photo_is_encoded_once_and_keeps_its_number(photo) -> None:
    encode = Encoder()
    memory, bright = PhotoMemory(encode), photo(9)
    first, again = memory.features(bright), memory.features(bright)
    assert encode.runs == 1
    assert first is again
    assert (first.tokens.values == 9).all()


def test_other_photo_has_another_number_even_if_it_looks_the_same(photo) -> None:
    encode = Encoder()
    memory, photos = PhotoMemory(encode), [photo(9), photo(9), photo(1)]
    assert len({memory.features(it).number for it in photos}) == encode.runs == 3


def test_number_is_not_used_again_when_a_photo_is_gone(photo) -> None:
    memory = PhotoMemory(Encoder())
    numbers = {memory.features(photo(9)).number for _ in range(5)}
    assert len(numbers) == 5


def test_features_are_forgotten_with_the_photo(photo) -> None:
    memory, bright = PhotoMemory(Encoder()), photo(9)
    gone = ref(memory.features(bright))
    del bright
    gc.collect()
    assert gone() is None


def test_features_that_depend_on_the_question_are_those_of_the_last_one(photo) -> None:
    encode = Encoder()
    memory, bright = PhotoMemory(encode, asks_text=True), photo(9)
    first = memory.features(bright, "What?")
    assert memory.features(bright, "What?") is memory.features(bright) is first
    second = memory.features(bright, "Why?")
    assert (encode.runs, encode.asked) == (2, "Why?")
    assert second.number != first.number
    assert memory.features(bright) is second


def test_other_features_are_the_same_for_every_question(photo) -> None:
    encode = Encoder()
    memory, bright = PhotoMemory(encode), photo(9)
    assert memory.features(bright, "What?") is memory.features(bright, "Why?")
    assert encode.runs == 1
