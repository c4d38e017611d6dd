"""Which patches of a photo were left behind each rule of an answer, as a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from atp_runtime.answer import Answer
from atp_runtime.chunk import Chunk
from atp_runtime.decoder_results import PointResult
from atp_runtime.manifest import VisionModel
from atp_runtime.picture import PointView, draw_pruning
from atp_runtime.selection import BoolArray, IndexArray


def pruned_images(answer: Answer) -> tuple[int, ...]:
    """The images whose tokens this turn prefilled, by their number in the conversation."""
    return tuple(int(number) for number in np.unique(answer.chunk.image) if number >= 0)


def point_views(answer: Answer, image: int, vision: VisionModel) -> list[PointView]:
    """One view of an image per pruning point, and one before if a rule stands before the decoder.

    Args:
        answer: Of a turn that had the image.
        image: Its number in the conversation.
        vision: The bundle's.
    """
    chunk = answer.chunk
    everything = np.arange(len(chunk))
    merged = (chunk.image >= 0) & (chunk.row < 0) & (vision.pruning is not None)
    views = [_view(chunk, image, vision, everything, merged)] if vision.pruning else []
    for it in answer.points:
        merged = merged | _merged(chunk, it)
        views.append(_view(chunk, image, vision, it.kept, merged, it.before_layer))
    return views


def draw_answer(answer: Answer, image: int, vision: VisionModel) -> Image.Image:
    """The photo, once as the model sees it and once per rule."""
    photo = answer.photos[image]
    views = point_views(answer, image, vision)
    return draw_pruning(photo.image, photo.view, vision.grid, views)


def _merged(chunk: Chunk, point: PointResult) -> BoolArray:
    """In whose place one made of others stands behind the point: bool [N]."""
    merged = np.zeros(len(chunk), dtype=np.bool_)
    if point.selection.merges is not None:
        visual = point.entered[chunk.image[point.entered] >= 0]
        merged[visual[point.selection.merges.place]] = True
    return merged


def _view(
    chunk: Chunk,
    image: int,
    vision: VisionModel,
    alive: IndexArray,
    merged: BoolArray,
    layer: int | None = None,
) -> PointView:
    mine = alive[chunk.image[alive] == image]
    placed = mine[(chunk.row[mine] >= 0) & ~merged[mine]]
    kept = np.zeros(vision.grid, dtype=np.bool_)
    kept[chunk.row[placed], chunk.column[placed]] = True
    return PointView(layer, kept, int(merged[mine].sum()))
