from pathlib import Path

import pytest

from atp_models.demo.data.easy_vqa import EASY_VQA_SETS
from atp_models.demo.data.samples import Sample
from atp_models.demo.parts import Part
from atp_models.demo.scenes.questions import Question
from atp_runtime.errors import InputError

TEST = EASY_VQA_SETS["easy-vqa-test"]


def test_questions_come_by_image_with_their_kind(easy_vqa: tuple[Part, Path]) -> None:
    assert TEST.samples(easy_vqa[1]) == [
        Sample(0, Question("yes/no", "is there a circle?", "yes"), 1),
        Sample(0, Question("colour", "what color is the shape?", "teal"), 1),
        Sample(0, Question("yes/no", "is there no circle?", "no"), 1),
        Sample(1, Question("shape", "what shape is in the image?", "circle"), 1),
        Sample(2, Question("shape", "what is the blue shape?", "rectangle"), 1),
    ]


def test_fewer_images_leave_out_the_last(easy_vqa: tuple[Part, Path]) -> None:
    assert {sample.image for sample in TEST.samples(easy_vqa[1], images=2)} == {0, 1}


def test_fewer_questions_are_some_of_all_in_order(easy_vqa: tuple[Part, Path]) -> None:
    everything = TEST.samples(easy_vqa[1])
    some = TEST.samples(easy_vqa[1], questions=3)
    assert len(some) == 3
    assert [sample for sample in everything if sample in some] == some
    assert TEST.samples(easy_vqa[1], questions=3) == some


def test_more_questions_than_there_are_are_refused(easy_vqa: tuple[Part, Path]) -> None:
    with pytest.raises(InputError, match="there are 5"):
        TEST.samples(easy_vqa[1], questions=6)


def test_images_are_enlarged_to_the_models_size(easy_vqa: tuple[Part, Path]) -> None:
    draw = TEST.drawer(easy_vqa[1])
    assert [draw(number).getpixel((300, 30)) for number in (0, 2)] == [(255, 0, 0), (0, 0, 255)]
    assert draw(1).size == (336, 336)
    assert draw(1).mode == "RGB"
