"""Prefills and decode steps that follow each other, taken back and interrupted."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.runtime.decoder.conftest import CAPACITY
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

from atp_runtime.backends import Backend
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.decoder_results import DecoderState, PrefillResult
from atp_runtime.errors import InputError
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection, VisualTokens


def test_decode_continues_after_the_unpruned_length(
    decoder: SegmentedDecoder, naive: NaiveDecoder
) -> None:
    images = [IMAGE, IMAGE, IMAGE, TEXT]
    masks = [[False, True, False], [False]]
    hidden = hidden_of(6, 6)
    naive.run(hidden[0, :4], visual_of(images), masks)
    decoder.prefill(hidden[:, :4], chunk_of(images), ForcedSelection(masks))
    for step in (4, 5):
        expected, _, _ = naive.run(hidden[0, step : step + 1], set(), [[], []])
        close(decoder.decode(hidden[:, step : step + 1]), expected)
    assert decoder.state == DecoderState(position=6, lengths=(6, 4, 3))


def test_later_turn_prunes_its_own_image_and_keeps_the_caches_of_earlier_turns(
    decoder: SegmentedDecoder, naive: NaiveDecoder
) -> None:
    first, second = [IMAGE, IMAGE, TEXT], [TEXT, IMAGE + 1, IMAGE + 1, TEXT]
    hidden = hidden_of(7, 8)
    naive.run(hidden[0, :3], visual_of(first), [[True, False], [False]])
    decoder.prefill(hidden[:, :3], chunk_of(first), ForcedSelection([[True, False], [False]]))
    naive.run(hidden[0, 3:4], set(), [[], []])
    decoder.decode(hidden[:, 3:4])
    masks = [[False, True], [True]]
    expected, kept, _ = naive.run(hidden[0, 4:], visual_of(second), masks)
    result = decoder.prefill(hidden[:, 4:], chunk_of(second), ForcedSelection(masks))
    close(result.logits, expected)
    assert [point.kept.tolist() for point in result.points] == kept == [[0, 2, 3], [0, 2, 3]]
    assert decoder.state == DecoderState(position=8, lengths=(8, 6, 5))


def test_prefill_of_all_tokens_equals_decoding_them_one_by_one(decoder: SegmentedDecoder) -> None:
    hidden = hidden_of(8, 5)
    whole = decoder.prefill(hidden, Chunk.text(5), keep_all).logits
    decoder.reset()
    for step in range(5):
        logits = decoder.decode(hidden[:, step : step + 1])
    close(logits, whole)


def test_logits_stay_what_they_were_when_the_decoder_goes_on(decoder: SegmentedDecoder) -> None:
    hidden = hidden_of(9, 3)
    first = decoder.prefill(hidden, Chunk.text(3), keep_all).logits
    before = first.copy()
    decoder.decode(hidden[:, :1])
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_decoder_is_as_before_when_a_prefill_stops_halfway(
    decoder: SegmentedDecoder, naive: NaiveDecoder, error: type[BaseException]
) -> None:
    hidden = hidden_of(10, 7)
    naive.run(hidden[0, :3], set(), [[], []])
    decoder.prefill(hidden[:, :3], Chunk.text(3), keep_all)
    before = decoder.state

    def stop_at_second_point(
        point: PruningPoint, a: np.ndarray, b: np.ndarray, text: bool, visual: VisualTokens
    ) -> Selection:
        if point.before_layer == 3:
            raise error
        return keep_all(point, a, b, text, visual)

    with pytest.raises(error):
        decoder.prefill(hidden_of(11, 5), chunk_of([TEXT, *[IMAGE] * 4]), stop_at_second_point)
    assert decoder.state == before
    expected, _, _ = naive.run(hidden[0, 3:], set(), [[], []])
    close(decoder.prefill(hidden[:, 3:], Chunk.text(4), keep_all).logits, expected)


def test_rewind_takes_back_later_tokens(decoder: SegmentedDecoder) -> None:
    hidden = hidden_of(12, 5)
    decoder.prefill(
        hidden[:, :3], chunk_of([IMAGE, IMAGE, TEXT]), ForcedSelection([[True, False], [False]])
    )
    state = decoder.state
    once = decoder.prefill(hidden[:, 3:], Chunk.text(2), keep_all).logits
    decoder.decode(hidden[:, :1])
    decoder.rewind(state)
    assert decoder.state == state
    again = decoder.prefill(hidden[:, 3:], Chunk.text(2), keep_all).logits
    np.testing.assert_array_equal(once, again)


def test_rewind_raises_when_the_state_is_ahead(decoder: SegmentedDecoder) -> None:
    with pytest.raises(ValueError, match="0 positions"):
        decoder.rewind(DecoderState(2, (2, 2, 2)))


def test_grow_keeps_the_conversation(
    hand_made: Path, backend: Backend, naive: NaiveDecoder
) -> None:
    hidden = hidden_of(13, 8)
    with SegmentedDecoder(Bundle.open(hand_made), backend, 4) as decoder:
        naive.run(hidden[0, :3], set(), [[], []])
        naive.run(hidden[0, 3:4], set(), [[], []])
        decoder.prefill(hidden[:, :3], Chunk.text(3), keep_all)
        decoder.decode(hidden[:, 3:4])
        decoder.grow(8)
        expected, _, _ = naive.run(hidden[0, 4:], set(), [[], []])
        close(decoder.prefill(hidden[:, 4:], Chunk.text(4), keep_all).logits, expected)


class DecoderAgainstNaive(RuleBasedStateMachine):
    """Any conversation gives the naive computation's logits, failures in between or not."""

    decoder: SegmentedDecoder
    head: np.ndarray

    @initialize()
    def begin(self) -> None:
        self.decoder.reset()
        self.naive = NaiveDecoder(self.head)
        self.lengths = [0, 0, 0]
        self.seed = 0
        self.remember()

    @rule()
    def remember(self) -> None:
        self.earlier = self.decoder.state, deepcopy(self.naive), self.lengths

    @rule()
    def rewind(self) -> None:
        state, naive, self.lengths = self.earlier
        self.decoder.rewind(state)
        self.naive = deepcopy(naive)

    def next_hidden(self, tokens: int) -> np.ndarray:
        self.seed += 1
        return hidden_of(self.seed, tokens)

    @rule(images=st.lists(st.sampled_from([TEXT, 0, 1]), min_size=1, max_size=9), data=st.data())
    def prefill(self, images: list[int], data: st.DataObject) -> None:
        assume(self.lengths[0] + len(images) <= CAPACITY)
        left, masks = len(visual_of(images)), []
        for _ in range(2):
            masks.append(data.draw(st.lists(st.booleans(), min_size=left, max_size=left)))
            left = sum(masks[-1])
        assume(left or TEXT in images)
        hidden = self.next_hidden(len(images))
        expected, kept, _ = self.naive.run(hidden[0], visual_of(images), masks)
        result: PrefillResult = self.decoder.prefill(
            hidden, chunk_of(images), ForcedSelection(masks)
        )
        close(result.logits, expected)
        assert [point.kept.tolist() for point in result.points] == kept
        self.count(len(images), *map(len, kept))

    @rule()
    def decode(self) -> None:
        assume(self.lengths[0] < CAPACITY)
        hidden = self.next_hidden(1)
        expected, _, _ = self.naive.run(hidden[0], set(), [[], []])
        close(self.decoder.decode(hidden), expected)
        self.count(1, 1, 1)

    @rule(tokens=st.integers(1, 5))
    def overflow(self, tokens: int) -> None:
        count = CAPACITY - self.lengths[0] + tokens
        with pytest.raises(InputError):
            self.decoder.prefill(self.next_hidden(count), Chunk.text(count), keep_all)

    @rule(tokens=st.integers(1, 5))
    def fail_in_selection(self, tokens: int) -> None:
        assume(self.lengths[0] + tokens <= CAPACITY)
        with pytest.raises(IndexError):
            self.decoder.prefill(
                self.next_hidden(tokens), Chunk.text(tokens), ForcedSelection([[]])
            )

    def count(self, *tokens: int) -> None:
        self.lengths = [length + more for length, more in zip(self.lengths, tokens, strict=True)]

    @invariant()
    def lengths_are_those_of_the_tokens_that_reached_each_segment(self) -> None:
        assert list(self.decoder.state.lengths) == self.lengths
        assert self.decoder.state.position == self.naive.position


def test_decoder_follows_the_naive_computation_through_any_conversation(
    loaded: SegmentedDecoder, head: np.ndarray
) -> None:
    machine = type("Machine", (DecoderAgainstNaive,), {"decoder": loaded, "head": head})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=10, stateful_step_count=12, deadline=None)
    )
