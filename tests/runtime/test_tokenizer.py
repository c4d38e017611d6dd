"""Tokenizers encode and decode as those of Transformers do."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.tokenizer_kinds import (
    KINDS,
    TEXTS,
    Kind,
    both,
    byte_level,
    llama_legacy,
    write_files,
)
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

from atp_runtime.errors import InputError
from atp_runtime.tokenizer import Tokenizer


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


# What is refused


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
