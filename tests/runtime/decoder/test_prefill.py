"""What a prefill computes and what it asks at each pruning point."""

import numpy as np
import pytest
from tests.runtime.decoder.naive_decoder import (
    IMAGE,
    TEXT,
    NaiveDecoder,
    chunk_of,
    close,
    hidden_of,
    visual_of,
)
from tests.runtime.forced_selection import ForcedSelection, keep_all

from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.decoder_results import DecoderState
from atp_runtime.selection import VisualTokens
from atp_runtime.workspace import Scorer


def test_prefill_equals_the_unsegmented_computation_when_all_tokens_stay(
    decoder: SegmentedDecoder, naive: NaiveDecoder
) -> None:
    images = [TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT]
    hidden = hidden_of(1, 6)
    expected, _, _ = naive.run(hidden[0], visual_of(images), [[True] * 3] * 2)
    result = decoder.prefill(hidden, chunk_of(images), keep_all)
    close(result.logits, expected)
    assert decoder.state == DecoderState(position=6, lengths=(6, 6, 6))


def test_prefill_drops_tokens_from_the_next_segment_on(
    decoder: SegmentedDecoder, naive: NaiveDecoder
) -> None:
    images = [TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT]
    masks = [[True, False, True], [False, True]]
    hidden = hidden_of(2, 6)
    expected, _, _ = naive.run(hidden[0], visual_of(images), masks)
    result = decoder.prefill(hidden, chunk_of(images), ForcedSelection(masks))
    close(result.logits, expected)
    assert decoder.state == DecoderState(position=6, lengths=(6, 5, 4))


def test_prefill_reports_each_point_in_tokens_of_the_chunk(decoder: SegmentedDecoder) -> None:
    images = [TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT]
    masks = [[True, False, True], [False, True]]
    points = decoder.prefill(hidden_of(2, 6), chunk_of(images), ForcedSelection(masks)).points
    assert [point.before_layer for point in points] == [2, 3]
    assert [point.entered.tolist() for point in points] == [[0, 1, 2, 3, 4, 5], [0, 1, 3, 4, 5]]
    assert [point.kept.tolist() for point in points] == [[0, 1, 3, 4, 5], [0, 3, 4, 5]]
    assert [point.selection.note for point in points] == ["forced", "forced"]


def test_prefill_asks_about_tokens_where_they_stand_in_the_segment(
    decoder: SegmentedDecoder,
) -> None:
    images = [TEXT, IMAGE, IMAGE, TEXT, IMAGE, TEXT]
    select = ForcedSelection([[False, True, True], [True, True]])
    decoder.prefill(hidden_of(3, 6), chunk_of(images), select)
    assert select.points == [2, 3]
    assert [visual.index.tolist() for visual in select.visual] == [[1, 2, 4], [1, 3]]
    assert [visual.row.tolist() for visual in select.visual] == [[1, 2, 4], [2, 4]]


@pytest.mark.parametrize("first", [[False, True, True], [True, True, False]])
def test_prefill_passes_the_scores_of_the_whole_sequence(
    decoder: SegmentedDecoder, naive: NaiveDecoder, first: list[bool]
) -> None:
    images = [TEXT, IMAGE, IMAGE, TEXT, IMAGE, TEXT, TEXT]
    masks = [first, [True, False]]
    hidden = hidden_of(4, 7)
    _, _, expected = naive.run(hidden[0], visual_of(images), masks)
    select = ForcedSelection(masks)
    decoder.prefill(hidden, chunk_of(images), select)
    for actual, wanted in zip(select.scores, expected, strict=True):
        close(actual, wanted)


def test_prefill_asks_the_rows_that_another_scorer_names(decoder: SegmentedDecoder) -> None:
    """These scores are linear, so those of two rows are the mean of each one's."""
    images, hidden = [TEXT, IMAGE, IMAGE, TEXT, TEXT], hidden_of(4, 5)

    def cross(rows: slice) -> np.ndarray:
        def scorer(visual: VisualTokens, tokens: int, behind: int) -> Scorer:
            asked = Scorer.for_sequence(visual, tokens, behind)
            rest = asked.text_rows[rows]
            weights = np.full(len(rest), 1 / len(rest), dtype=np.float32)
            return Scorer(asked.visual_weights, rest, weights, asked.has_text)

        select = ForcedSelection([[True, False], [True]])
        decoder.reset()
        decoder.scorer = scorer
        decoder.prefill(hidden, chunk_of(images), select)
        decoder.scorer = Scorer.for_sequence
        return select.scores[0][1]

    last, before = cross(slice(1, 2)), cross(slice(0, 1))
    assert np.abs(last - before).max() > 0.1
    close(cross(slice(0, 2)), (last + before) / 2)


@pytest.mark.parametrize(
    ("images", "has_text"),
    [([TEXT, IMAGE, TEXT], True), ([TEXT, IMAGE], False), ([TEXT, TEXT], False)],
)
def test_prefill_says_whether_text_follows_the_last_visual_token(
    decoder: SegmentedDecoder, naive: NaiveDecoder, images: list[int], has_text: bool
) -> None:
    masks = [[True] * images.count(IMAGE)] * 2
    hidden = hidden_of(5, len(images))
    expected, _, scores = naive.run(hidden[0], visual_of(images), masks)
    select = ForcedSelection(masks)
    close(decoder.prefill(hidden, chunk_of(images), select).logits, expected)
    assert select.has_text == [has_text, has_text]
    close(select.scores[0], scores[0])
