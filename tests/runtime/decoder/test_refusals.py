"""What the decoder refuses, and that it is as before then."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.runtime.decoder.conftest import CAPACITY
from tests.runtime.decoder.naive_decoder import chunk_of, hidden_of
from tests.runtime.forced_selection import ForcedSelection, keep_all

from atp_runtime.backends import Backend, open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.chunk import Chunk
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.decoder_results import DecoderState
from atp_runtime.errors import InputError
from atp_runtime.manifest import Manifest, read_manifest


def test_prefill_raises_when_there_is_nothing_to_run(decoder: SegmentedDecoder) -> None:
    with pytest.raises(InputError, match="no tokens"):
        decoder.prefill(hidden_of(0, 0), Chunk.text(0), keep_all)


def test_prefill_raises_when_pruning_leaves_no_token(decoder: SegmentedDecoder) -> None:
    decoder.prefill(hidden_of(0, 2), Chunk.text(2), keep_all)
    before = decoder.state
    with pytest.raises(InputError, match="no token is left before layer 3"):
        decoder.prefill(
            hidden_of(0, 2), chunk_of([1, 1]), ForcedSelection([[True, False], [False]])
        )
    assert decoder.state == before


def test_prefill_raises_when_the_prompt_is_longer_than_the_capacity(
    decoder: SegmentedDecoder, backend: Backend
) -> None:
    decoder.prefill(hidden_of(0, 3), Chunk.text(3), keep_all)
    calls = backend.traffic.stage_calls
    with pytest.raises(InputError, match="38 tokens do not fit: 3 of 40"):
        decoder.prefill(hidden_of(0, 38), Chunk.text(38), keep_all)
    assert backend.traffic.stage_calls == calls
    assert decoder.state == DecoderState(3, (3, 3, 3))


@pytest.mark.parametrize(("tokens", "said"), [(0, "no tokens"), (39, "39 tokens do not fit")])
def test_check_room_refuses_what_prefill_would(
    decoder: SegmentedDecoder, tokens: int, said: str
) -> None:
    decoder.prefill(hidden_of(0, 2), Chunk.text(2), keep_all)
    decoder.check_room(38)
    with pytest.raises(InputError, match=said):
        decoder.check_room(tokens)


def test_decode_raises_when_the_cache_is_full(decoder: SegmentedDecoder) -> None:
    decoder.prefill(hidden_of(0, CAPACITY), Chunk.text(CAPACITY), keep_all)
    before = decoder.state
    with pytest.raises(InputError, match="1 tokens do not fit"):
        decoder.decode(hidden_of(0, 1))
    assert decoder.state == before


def test_prefill_raises_when_the_model_has_no_such_positions(
    hand_made: Path, backend: Backend
) -> None:
    with SegmentedDecoder(Bundle.open(hand_made), backend, 200) as decoder:
        decoder.prefill(hidden_of(0, 90), Chunk.text(90), keep_all)
        with pytest.raises(InputError, match="7 tokens after 90 are more than 96"):
            decoder.prefill(hidden_of(0, 7), Chunk.text(7), keep_all)
        assert decoder.prefill(hidden_of(0, 6), Chunk.text(6), keep_all).logits.shape == (11,)


def test_decoder_names_the_stage_when_a_graph_is_damaged(
    own_bundle: Path, write_files: Callable[[Path, Manifest], None]
) -> None:
    (own_bundle / "onnx" / "segment_2.onnx").write_bytes(b"\x08\x07damaged")
    write_files(own_bundle, read_manifest(own_bundle))
    bundle = Bundle.open(own_bundle)
    with pytest.raises(InputError, match="stage segment_2"):
        SegmentedDecoder(bundle, open_backend(threads=1), CAPACITY)
