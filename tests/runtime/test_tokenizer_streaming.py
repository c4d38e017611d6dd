"""Answers that are decoded token by token."""

import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.tokenizer_kinds import CORPUS, KINDS, TEXTS, Kind, both, byte_level, llama_legacy
from tokenizers import Regex, decoders, models

from atp_runtime.tokenizer import StreamDecoder, Tokenizer


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return both(request.param, tmp_path_factory.mktemp(request.param.__name__))


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@given(data=st.data())
@settings(deadline=None)
def test_streamed_text_joins_to_the_decoded_answer(pair: Any, data: st.DataObject) -> None:
    ours, _ = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size + 3)))
    assert "".join(streamed(ours, ids)) == ours.decode(ids)


@given(text=TEXTS)
@settings(deadline=None)
def test_streamed_text_joins_to_the_decoded_answer_when_it_is_a_real_text(
    pair: Any, text: str
) -> None:
    ours, _ = pair
    ids = ours.encode(text, add_special_tokens=True)
    assert "".join(streamed(ours, ids)) == ours.decode(ids)


def test_words_are_streamed_without_delay(pair: Any) -> None:
    ours, _ = pair
    ids = ours.encode("The cat is asleep", add_special_tokens=False)
    pieces = streamed(ours, ids)
    assert pieces[:-1] == [
        ours.decode(ids[: end + 1])[len(ours.decode(ids[:end])) :] for end in range(len(ids))
    ]
    assert pieces[-1] == ""


@pytest.mark.parametrize("kind", [byte_level, llama_legacy], ids=lambda kind: kind.__name__)
def test_half_a_character_is_held_back(kind: Kind, tmp_path: Path) -> None:
    ours, _ = both(kind, tmp_path)
    ids = ours.encode("x\N{SNOWMAN}y", add_special_tokens=False)
    pieces = streamed(ours, ids)
    assert len(ids) >= 5
    assert "".join(pieces) == "x\N{SNOWMAN}y"
    assert not any("\ufffd" in piece for piece in pieces)


def test_run_of_byte_tokens_is_held_until_no_byte_can_spoil_it(tmp_path: Path) -> None:
    ours, _ = both(llama_legacy, tmp_path)
    decoder = StreamDecoder(ours)
    snowman = [ours.token_id(f"<0x{byte:02X}>") for byte in "\N{SNOWMAN}".encode()]
    assert [decoder.push(token_id) for token_id in snowman] == ["", "", ""]
    assert decoder.push(ours.token_id("<0xFF>")) == ""
    assert decoder.flush() == "\ufffd" * 4


def test_special_and_unknown_ids_stream_as_nothing(pair: Any) -> None:
    ours, _ = pair
    decoder = StreamDecoder(ours)
    ids = [ours.token_id("</s>"), ours.token_id("<image>"), ours.vocab_size + 7]
    assert [decoder.push(token_id) for token_id in ids] == ["", "", ""]


TOKENS = [
    "",
    " ",
    "▁",
    "▁▁",
    "▁a",
    "a",
    "##b",
    "b</w>",
    "<0xE2>",
    "<0x98>",
    "<0x83>",
    "Ġ",
    "Ã",
    "©",
]


def with_decoder(decoder: decoders.Decoder | None) -> Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(TOKENS)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    if decoder is not None:
        backend.decoder = decoder
    return Tokenizer(backend, bos_token=None, eos_token_ids=frozenset())


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.WordPiece(),
        decoders.ByteLevel(),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Metaspace(prepend_scheme="never"),
        decoders.Strip(" ", 1, 0),
        decoders.Replace(Regex("[ab]"), "c"),
        decoders.Sequence([decoders.Fuse(), decoders.Strip("▁", 2, 0)]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("▁a", "")]),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip("a", 1, 0)]),
        decoders.Sequence([decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteLevel()])]),
    ],
    ids=repr,
)
@given(ids=st.lists(st.integers(0, len(TOKENS) - 1)))
@settings(deadline=None)
def test_streaming_is_exact_for_any_decoder(
    decoder: decoders.Decoder | None, ids: list[int]
) -> None:
    ours = with_decoder(decoder)
    assert "".join(streamed(ours, ids)) == ours.decode(ids)


def test_streaming_is_exact_when_the_decoder_strips_the_end() -> None:
    ours = with_decoder(decoders.Sequence([decoders.Fuse(), decoders.Strip("▁", 1, 1)]))
    assert "".join(streamed(ours, [TOKENS.index(it) for it in ["▁▁", "a", "▁"]])) == "▁a"


def test_streaming_costs_no_more_per_token_at_the_end_of_a_long_answer(pair: Any) -> None:
    ours, _ = pair
    decoder = StreamDecoder(ours)
    answer = ours.encode(" ".join(CORPUS), add_special_tokens=False)
    blocks = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(2):
            for token_id in answer:
                decoder.push(token_id)
        blocks.append(time.perf_counter() - start)
    # Decoding the whole answer again for every token would make the last blocks 20 times slower.
    assert min(blocks[-5:]) < 5 * min(blocks[:5])
