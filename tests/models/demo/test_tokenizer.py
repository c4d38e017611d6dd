from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from jinja2 import Environment
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from atp_models.demo.tokenizer import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    read_tokenizer,
    write_tokenizer,
)
from atp_runtime.errors import CheckFailedError

# The template inside SmolLM2's GGUF file, verbatim.
ORIGINAL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
PLAIN = Environment(autoescape=False)
TRIMMING = Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True)


def render(messages: list[dict], *, prompt: bool = True, environment: Environment = PLAIN) -> str:
    template = environment.from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, add_generation_prompt=prompt)


def test_tokenizer_splits_digits_off_before_spaces_are_joined(tiny_gguf) -> None:
    assert read_tokenizer(tiny_gguf).encode("hello  12").tokens == ["hello", "ĠĠ", "1", "2"]


def test_tokenizer_applies_merges_and_keeps_control_tokens_whole(tiny_gguf) -> None:
    tokens = read_tokenizer(tiny_gguf).encode("<|im_start|>hello hello<|im_end|>").tokens
    assert tokens == ["<|im_start|>", "hello", "Ġhello", "<|im_end|>"]


@pytest.mark.parametrize("text", ["", "naïve 日本語 🙂", "\tint  x =  10;\r\n\n", " \u00a0 ٣ ½"])
def test_tokenizer_decodes_to_the_text_it_encoded(tiny_gguf, text: str) -> None:
    tokenizer = read_tokenizer(tiny_gguf)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_image_token_is_one_new_id_after_the_files_own(tiny_gguf) -> None:
    tokenizer = read_tokenizer(tiny_gguf)
    own = len(tiny_gguf.fields["tokenizer.ggml.tokens"].contents())
    assert tokenizer.encode(f"hello{IMAGE_TOKEN}\nhello").ids.count(own) == 1
    assert tokenizer.get_vocab_size() == own + 1


def test_tokenizer_is_refused_when_the_file_splits_text_another_way(
    make_gguf: Callable[..., gguf.GGUFReader],
) -> None:
    with pytest.raises(CheckFailedError, match="llama-bpe"):
        read_tokenizer(make_gguf(splitting="llama-bpe"))


def test_written_tokenizer_loads_in_transformers_with_its_roles(tiny_gguf, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tiny_gguf)
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(tokenizer, tiny_gguf, out)
    loaded = AutoTokenizer.from_pretrained(out)
    assert (loaded.bos_token, loaded.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (loaded.pad_token, loaded.image_token) == ("<|im_end|>", IMAGE_TOKEN)
    text = "hello  12 <image>\n<|im_end|>"
    expected = Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids
    assert loaded(text)["input_ids"] == expected == tokenizer.encode(text).ids


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "  Hi\n"}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye {{ 1 }}"},
        ],
    ],
    ids=["one turn", "two turns"],
)
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("environment", [PLAIN, TRIMMING], ids=["plain", "trimming"])
def test_template_prints_strings_as_the_models_own_template_does_when_a_system_message_leads(
    messages: list[dict], prompt: bool, environment: Environment
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *messages]
    original = PLAIN.from_string(ORIGINAL_TEMPLATE)
    expected = original.render(messages=messages, add_generation_prompt=prompt)
    assert render(messages, prompt=prompt, environment=environment) == expected


def test_template_adds_no_system_message_of_its_own() -> None:
    asked = [{"role": "user", "content": "Hi"}]
    answered = [*asked, {"role": "assistant", "content": "Hello."}]
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(asked) == prompt
    assert render(answered, prompt=False) == prompt + "Hello.<|im_end|>\n"


@pytest.mark.parametrize("environment", [PLAIN, TRIMMING], ids=["plain", "trimming"])
def test_template_puts_one_placeholder_per_image_before_the_text(environment: Environment) -> None:
    text = {"type": "text", "text": "Compare them."}
    messages = [{"role": "user", "content": [{"type": "image"}, text, {"type": "image"}]}]
    assert render(messages, environment=environment) == (
        "<|im_start|>user\n<image>\n<image>\nCompare them.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_prints_a_list_of_text_like_the_same_string() -> None:
    as_list = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert render(as_list) == render([{"role": "user", "content": "Hi"}])
