import numpy as np
import pytest

from atp_runtime.chunk import Chunk
from atp_runtime.errors import InputError
from atp_runtime.image_tokens import Places
from atp_runtime.manifest import VisionModel

P = 50  # the placeholder


def whole(*, prefix: int = 0, skipped: int = 0) -> Places:
    """Of a grid of 2 rows and 3 columns."""
    tokens = prefix + 6 - skipped
    return Places.whole(VisionModel((4, 6), (2, 3), tokens, prefix, skipped, image_token_id=P))


def test_text_has_no_visual_tokens() -> None:
    chunk = Chunk.text(3)
    assert len(chunk) == 3
    assert len(chunk.visual()) == 0


def test_from_ids_gives_each_placeholder_its_patch_row_by_row() -> None:
    chunk = Chunk.from_ids([1, *[P] * 6, 2], P, [whole()])
    assert chunk.image.tolist() == [-1, 0, 0, 0, 0, 0, 0, -1]
    assert chunk.row.tolist() == [-1, 0, 0, 0, 1, 1, 1, -1]
    assert chunk.column.tolist() == [-1, 0, 1, 2, 0, 1, 2, -1]


def test_from_ids_gives_prefix_features_no_place() -> None:
    chunk = Chunk.from_ids([P] * 7, P, [whole(prefix=1)])
    assert chunk.image.tolist() == [0] * 7
    assert chunk.row.tolist() == [-1, 0, 0, 0, 1, 1, 1]
    assert chunk.column.tolist() == [-1, 0, 1, 2, 0, 1, 2]


def test_from_ids_begins_later_when_patches_are_skipped() -> None:
    chunk = Chunk.from_ids([P] * 5, P, [whole(skipped=1)])
    assert chunk.row.tolist() == [0, 0, 1, 1, 1]
    assert chunk.column.tolist() == [1, 2, 0, 1, 2]


def test_from_ids_counts_images_through_the_conversation() -> None:
    chunk = Chunk.from_ids([*[P] * 6, 1, *[P] * 6], P, [whole(), whole()], first_image=2)
    assert chunk.image.tolist() == [2] * 6 + [-1] + [3] * 6
    assert chunk.row[7:].tolist() == chunk.row[:6].tolist()


def test_from_ids_takes_images_of_different_lengths() -> None:
    few = Places(np.array([1, -1]), np.array([2, -1]))
    chunk = Chunk.from_ids([P, P, 1, *[P] * 6], P, [few, whole()])
    assert chunk.image.tolist() == [0, 0, -1, 1, 1, 1, 1, 1, 1]
    assert chunk.row.tolist() == [1, -1, -1, 0, 0, 0, 1, 1, 1]
    assert chunk.column.tolist() == [2, -1, -1, 0, 1, 2, 0, 1, 2]


def test_from_ids_raises_when_placeholders_are_not_as_many_as_tokens() -> None:
    with pytest.raises(InputError, match="7 image placeholders"):
        Chunk.from_ids([P] * 7, P, [whole()])


def test_visual_says_where_visual_tokens_are() -> None:
    visual = Chunk.from_ids([1, 2, *[P] * 6, 3], P, [whole()]).visual()
    assert visual.index.tolist() == [2, 3, 4, 5, 6, 7]
    assert visual.image.tolist() == [0] * 6
    assert visual.column.tolist() == [0, 1, 2, 0, 1, 2]


def test_chunk_raises_when_its_arrays_differ_in_length() -> None:
    with pytest.raises(ValueError, match="same length"):
        Chunk(np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(3, np.int64))
