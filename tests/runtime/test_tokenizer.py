import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

from atp_runtime.errors import InputError
from atp_runtime.tokenizer import StreamDecoder, Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, twice: 1, 2, 30!",
    "USER: What is in the picture? ASSISTANT: A cat on a mat, and it's asleep.",
    "def f(x):\n    return x  # a comment\n",
    "Ünïcödé, 日本語 and emoji 🙂🙂 too.",
] * 5
SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]


@functools.cache
def byte_level() -> tokenizers.Tokenizer:
    """As SmolLM2, Llama 3 and Qwen2."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("a word", special=False)])
    return backend


def sentencepiece_bpe(**pipeline: Any) -> tokenizers.Tokenizer:
    """A SentencePiece model with byte tokens, converted as the Llama 2 files are."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator([text.replace("日", "") for text in CORPUS], trainer)
    trained = json.loads(backend.to_str())
    vocab = trained["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    trained["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    trained["pre_tokenizer"] = None
    converted = tokenizers.Tokenizer.from_str(json.dumps(trained))
    for name, value in pipeline.items():
        setattr(converted, name, value)
    converted.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return converted


@functools.cache
def llama_legacy() -> tokenizers.Tokenizer:
    return sentencepiece_bpe(
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    )


@functools.cache
def llama_metaspace() -> tokenizers.Tokenizer:
    return sentencepiece_bpe(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        ),
    )


@functools.cache
def unigram() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


KINDS = [byte_level, llama_legacy, llama_metaspace, unigram]
Kind = Callable[[], tokenizers.Tokenizer]
TEXTS = st.lists(
    st.one_of(st.sampled_from(["<s>", "</s>", "<image>", "\n", "  ", *CORPUS]), st.text()),
    max_size=4,
).map("".join)


def write_files(folder: Path, backend: tokenizers.Tokenizer, **files: dict[str, Any]) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    # Transformers picks the tokenizer class by the kind of model, as it does for a checkpoint.
    for name, content in {"config": {"model_type": "llava"}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@functools.cache
def both(kind: Kind, folder: Path) -> tuple[Tokenizer, Any]:
    write_files(folder, kind(), tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    return Tokenizer.from_dir(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return both(request.param, tmp_path_factory.mktemp(request.param.__name__))


@given(text=TEXTS, add_special_tokens=st.booleans())
@settings(deadline=None)
def test_encode_equals_transformers(pair: Any, text: str, add_special_tokens: bool) -> None:
    ours, reference = pair
    expected = reference(text, add_special_tokens=add_special_tokens).input_ids
    assert ours.encode(text, add_special_tokens=add_special_tokens) == expected


@given(data=st.data(), skip=st.booleans())
@settings(deadline=None)
def test_decode_equals_transformers(pair: Any, data: st.DataObject, skip: bool) -> None:
    ours, reference = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size + 3)))
    assert ours.decode(ids, skip_special_tokens=skip) == reference.decode(
        ids, skip_special_tokens=skip
    )


def test_vocabulary_has_the_size_and_ids_of_transformers(pair: Any) -> None:
    ours, reference = pair
    vocabulary = reference.get_vocab()
    assert ours.vocab_size == len(reference) == len(vocabulary)
    assert {token: ours.token_id(token) for token in vocabulary} == vocabulary
    assert ours.token_id("no such token") is None


@pytest.mark.parametrize(
    "config",
    [
        {"add_bos_token": False, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"},
        {"bos_token": "<begin>", "pad_token": "<pad>", "image_token": "<here>"},
        {"extra_special_tokens": {"image_token": "<here>", "other_token": "<there>"}},
        {"additional_special_tokens": ["<x>", "<y>", "<x>"], "eos_token": "<end>"},
        {"extra_special_tokens": ["<x>"], "additional_special_tokens": ["<y>"]},
        {
            "eos_token": "the",
            "added_tokens_decoder": {
                "900": {"content": "<later>", "special": False, "lstrip": True},
                "70": {"content": "<sooner>", "special": True, "rstrip": True},
                "2": {"content": "</s>", "special": False, "lstrip": True, "normalized": False},
            },
        },
        {
            "pad_token": "<pad>",
            "added_tokens_decoder": {"80": {"content": "<pad>", "special": False}},
        },
        {"eos_token": "a word"},
        {"eos_token": "a word", "added_tokens_decoder": {}},
        {
            "eos_token": "a word",
            "added_tokens_decoder": {"500": {"content": "a word", "normalized": True}},
        },
        {"bos_token": {"__type": "AddedToken", "content": "<begin>", "lstrip": True}},
    ],
)
@pytest.mark.parametrize("kind", [byte_level, llama_legacy], ids=lambda kind: kind.__name__)
def test_special_tokens_of_the_config_are_those_of_transformers(
    kind: Kind, config: dict[str, Any], tmp_path: Path
) -> None:
    write_files(
        tmp_path,
        kind(),
        tokenizer_config=config,
        special_tokens_map={"unk_token": {"content": "<odd>", "rstrip": True}, "pad_token": "<p>"},
    )
    ours, reference = Tokenizer.from_dir(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "a <x> <here> <there> <y><begin> b the <later> <sooner> </s> <odd> <end> <p><pad> a word"
    ids = reference(text).input_ids
    assert ours.encode(text, add_special_tokens=True) == ids
    assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert ours.bos_token == reference.bos_token
    assert ours.vocab_size == len(reference)


def test_add_bos_token_is_ignored_when_tokenizer_json_adds_bos(tmp_path: Path) -> None:
    config = {"add_bos_token": False, "bos_token": "<s>"}
    write_files(tmp_path, llama_legacy(), tokenizer_config=config)
    assert Tokenizer.from_dir(tmp_path).encode("cat", add_special_tokens=True)[0] == 1


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level().to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    ours = Tokenizer.from_dir(write_files(tmp_path, backend))
    ids = ours.encode("a long enough text", add_special_tokens=False)
    assert ours.decode(ids) == "a long enough text"
    assert len(ids) < 50


@pytest.mark.parametrize("template", ["{{ bos_token }}USER: {{ c }}", "USER: {{ c }}"])
def test_prompt_gets_bos_once_as_from_the_processor_of_transformers(
    template: str, tmp_path: Path
) -> None:
    write_files(tmp_path, llama_legacy(), tokenizer_config={"bos_token": "<s>"})
    processor = LlavaProcessor(
        CLIPImageProcessor(),
        AutoTokenizer.from_pretrained(tmp_path),
        chat_template=template.replace("c }}", "messages[0].content }}"),
    )
    conversation = [{"role": "user", "content": "What is it?"}]
    rendered = processor.apply_chat_template(conversation, tokenize=False)
    expected = processor.apply_chat_template(conversation, tokenize=True)[0]
    assert Tokenizer.from_dir(tmp_path).encode_prompt(rendered) == expected
    assert expected.count(1) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": 2}}, {2}),
        ({"generation_config": {"eos_token_id": [2, 3]}}, {2, 3}),
        (
            {
                "generation_config": {"eos_token_id": 3},
                "tokenizer_config": {"eos_token": "</s>"},
            },
            {3},
        ),
        ({"generation_config": {"eos_token_id": None}, "tokenizer_config": {}}, set()),
        ({"generation_config": {}, "tokenizer_config": {"eos_token": "</s>"}}, {2}),
        ({"special_tokens_map": {"eos_token": {"content": "<image>"}}}, {3}),
        ({}, set()),
    ],
)
def test_eos_ids_come_from_the_generation_config_then_from_the_tokenizer(
    files: dict[str, Any], expected: set[int], tmp_path: Path
) -> None:
    assert (
        Tokenizer.from_dir(write_files(tmp_path, byte_level(), **files)).eos_token_ids == expected
    )


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


def test_missing_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b'{"version": "1.0", "model": {'),
        ("tokenizer.json", b'{"no": "tokenizer"}'),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b'{"bos_token": "<s>"'),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"bos_token": {"no": "content"}}'),
        ("tokenizer_config.json", b'{"bos_token": {"content": 5}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "y"}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", b'{"additional_special_tokens": 7}'),
        ("special_tokens_map.json", b"\x00"),
        ("generation_config.json", b"[" * 100_000),
        ("generation_config.json", b'{"eos_token_id": "2"}'),
        ("generation_config.json", b'{"eos_token_id": [2, null]}'),
    ],
)
def test_damaged_file_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    write_files(tmp_path, byte_level())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        Tokenizer.from_dir(tmp_path)
    assert name in raised.value.what
    assert raised.value.why
    assert raised.value.fix


def test_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_dir(tmp_path)


def test_text_that_is_no_unicode_is_refused(pair: Any) -> None:
    ours, _ = pair
    with pytest.raises(InputError, match="no Unicode text"):
        ours.encode("What is \udcff?", add_special_tokens=False)
