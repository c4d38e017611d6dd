from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atp_runtime.chunk import Chunk
from atp_runtime.decoder_results import PointResult
from atp_runtime.generation import GenerationOptions
from atp_runtime.image_tokens import Places
from atp_runtime.manifest import VisionModel
from atp_runtime.merges import Merges
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.pruning_view import draw_answer, point_views, pruned_images
from atp_runtime.selection import Selection, VisualTokens
from atp_runtime.session import Session

VISION = VisionModel((32, 32), (4, 4), 16, 0, 0, image_token_id=504)
ONE_TOKEN = GenerationOptions(max_new_tokens=1)
# Patches, by row and column, that stay of each image before each layer.
STAYS = {
    1: {0: {(0, 0), (1, 2), (3, 3)}, 1: {(2, 1)}, 2: {(0, 3)}},
    2: {0: {(1, 2), (3, 3)}, 1: {(2, 1)}, 2: {(0, 3)}},
    3: {0: {(3, 3)}, 1: set(), 2: {(0, 3)}},
}


def keep_stated(
    point: PruningPoint, _self: np.ndarray, _cross: np.ndarray, _text: bool, visual: VisualTokens
) -> Selection:
    stays = STAYS[point.before_layer]
    places = zip(visual.image, visual.row, visual.column, strict=True)
    kept = [(int(row), int(column)) in stays[int(image)] for image, row, column in places]
    return Selection(np.array(kept, dtype=np.bool_))


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, threads=1) as session:
        session.model.select = keep_stated
        yield session


def patches(kept: np.ndarray) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for row, column in np.argwhere(kept)}


def test_each_view_shows_what_stayed_of_its_image(session: Session, photos: list[Path]) -> None:
    answer = session.ask("What?", photos[:2], ONE_TOKEN)
    assert pruned_images(answer) == (0, 1)
    for image in (0, 1):
        views = point_views(answer, image, VISION)
        assert [view.layer for view in views] == [1, 2, 3]
        assert [patches(view.kept) for view in views] == [STAYS[n][image] for n in (1, 2, 3)]


def test_only_the_turns_own_images_are_shown_when_others_came_before(
    session: Session, photos: list[Path]
) -> None:
    conversation = session.conversation()
    conversation.ask("What?", photos[:2], ONE_TOKEN)
    answer = conversation.ask("And this?", photos[2:], ONE_TOKEN)
    assert pruned_images(answer) == (2,)
    assert [patches(view.kept) for view in point_views(answer, 2, VISION)] == [{(0, 3)}] * 3


def test_nothing_is_shown_when_the_turn_has_no_image(session: Session) -> None:
    assert pruned_images(session.ask("What?", (), ONE_TOKEN)) == ()


def test_class_token_has_no_place_when_the_grid_is_shown(
    session: Session, photos: list[Path]
) -> None:
    answer = session.ask("What?", photos[:1], ONE_TOKEN)
    vision = replace(session.model.manifest.vision, tokens=17, prefix_tokens=1)
    placeholder = vision.image_token_id
    chunk = Chunk.from_ids([1, *[placeholder] * 17, 2], placeholder, [Places.whole(vision)])
    class_token, first_patches, text = 1, [2, 3], 18
    kept = np.array([class_token, *first_patches, text])
    point = PointResult(2, np.arange(19), kept, Selection(np.arange(17) < 3))
    views = point_views(replace(answer, chunk=chunk, points=(point,)), 0, vision)
    assert [patches(view.kept) for view in views] == [{(0, 0), (0, 1)}]


def test_merged_tokens_are_counted_and_drawn_nowhere(session: Session, photos: list[Path]) -> None:
    answer = session.ask("What?", photos[:1], ONE_TOKEN)
    chunk = Chunk.from_ids([1, *[504] * 16, 2], 504, [Places.whole(VISION)])
    first = Merges.of(np.where(np.arange(16) < 4, 0.25, 0)[np.newaxis])
    left = np.array([0, 1, 6, 7, 17])  # the first patch stands for four
    points = (
        PointResult(
            1, np.arange(18), left, Selection(np.isin(np.arange(16), [0, 5, 6]), merges=first)
        ),
        PointResult(2, left, left[[0, 1, 2, 4]], Selection(np.array([True, True, False]))),
    )
    views = point_views(replace(answer, chunk=chunk, points=points), 0, VISION)
    assert [patches(view.kept) for view in views] == [{(1, 1), (1, 2)}, {(1, 1)}]
    assert [view.merged for view in views] == [1, 1]


def test_picture_is_that_of_the_photo_alone_when_there_are_several(
    session: Session, photos: list[Path]
) -> None:
    answer = session.ask("What?", photos[:2], ONE_TOKEN)
    first, second = (np.asarray(draw_answer(answer, image, VISION)) for image in (0, 1))
    alone = np.asarray(draw_answer(session.ask("What?", photos[:1], ONE_TOKEN), 0, VISION))
    np.testing.assert_array_equal(first, alone)
    assert first.shape != second.shape
