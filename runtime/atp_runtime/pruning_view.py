"""Which patches of a photo were left after each pruning point of an answer, as a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from atp_runtime.answer import Answer
from atp_runtime.picture import PointView, draw_pruning


def pruned_images(answer: Answer) -> tuple[int, ...]:
    """The images whose tokens this turn prefilled, by their number in the conversation."""
    return tuple(int(number) for number in np.unique(answer.chunk.image) if number >= 0)


def point_views(answer: Answer, image: int, grid: tuple[int, int]) -> list[PointView]:
    """One view per pruning point of one image.

    Args:
        answer: Of a turn that had the image.
        image: Its number in the conversation.
        grid: Rows and columns of patches.
    """
    chunk, views = answer.chunk, []
    for point in answer.points:
        mine = point.kept[chunk.image[point.kept] == image]
        placed = mine[chunk.row[mine] >= 0]
        kept = np.zeros(grid, dtype=np.bool_)
        kept[chunk.row[placed], chunk.column[placed]] = True
        views.append(PointView(point.before_layer, kept))
    return views


def draw_answer(answer: Answer, image: int, grid: tuple[int, int]) -> Image.Image:
    """The photo, once as the model sees it and once per pruning point."""
    photo = answer.photos[image]
    return draw_pruning(photo.image, photo.view, grid, point_views(answer, image, grid))
