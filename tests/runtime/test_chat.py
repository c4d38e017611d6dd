import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerFast

from atp_runtime.chat import ChatTemplate, ImagePart, Message, TextPart
from atp_runtime.errors import InputError

CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a small and helpful model<|im_end|>\\n' }}{% endif %}"
) + CHATML
LLAMA_2 = (
    "{%- if messages[0].role == 'system' -%}"
    "{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}"
    "{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{%- if (turn.role == 'user') != loop.index0 is even -%}"
    "{{ raise_exception('Turns must alternate between user and assistant') }}{%- endif -%}"
    "{%- if turn.role == 'user' -%}"
    "{{ bos_token ~ '[INST] ' ~ (system if loop.first else '') }}"
    "{{ turn.content.strip() ~ ' [/INST]' }}"
    "{%- else -%}{{ ' ' ~ turn.content | trim ~ ' ' ~ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} "
    "{% elif m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content ~ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LLAVA_HF = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role.upper() }}: {% endif %}"
    "{% for part in message.content | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message.content | selectattr('type', 'equalto', 'text') %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ part.text ~ ' ' }}{% endgeneration %}"
    "{% else %}{{ part.text ~ ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
STRING_OR_PARTS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% elif part.text %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
TEXT_PARTS_ONLY = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %};"
    "{% endfor %}"
)
USES_THE_ENVIRONMENT = (
    "{{ strftime_now('%Y') }} {% set ns = namespace(n=0, self=2) %}"
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ {'k': '<\\'é>'} | tojson(indent=2) }}{{ m.content | tojson }}"
    "{% endfor %}\n   {% generation %}{% set inside = 1 %}{% endgeneration %}"
    "{{ inside is defined }} "
    "{{ ns.n }} {{ dict(a=1).a }} {{ dict.fromkeys(['x']) }} "
    "{{ tools is none }} {{ documents is none }} {{ pad_token is defined }} {{ unk_token }}"
)
TAKE_STRINGS = {
    "chatml": CHATML,
    "smollm2": SMOLLM2,
    "llama-2": LLAMA_2,
    "vicuna": VICUNA,
    "text parts only": TEXT_PARTS_ONLY,
    "environment": USES_THE_ENVIRONMENT,
}
TAKE_PARTS = {"llava-hf": LLAVA_HF, "string or parts": STRING_OR_PARTS}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

LOOK = (TextPart("Look:"), ImagePart(), TextPart('what is <it> & "why"?'))
CONVERSATIONS = {
    "one question": [Message("user", (TextPart(" Héllo\n{{ bos_token }} "),))],
    "image": [Message("user", (ImagePart(), TextPart("What is it?")))],
    "image between texts": [Message("user", LOOK)],
    "two images": [Message("user", (ImagePart(), ImagePart(), TextPart("Which is older?")))],
    "system and turns": [
        Message("system", (TextPart("Be brief."),)),
        Message("user", (ImagePart(), TextPart("What is it?"))),
        Message("assistant", (TextPart("A cat."),)),
        Message("user", (TextPart("What now?"),)),
    ],
}


def checkpoint(folder: Path, template: str | None = None, **files: Any) -> Path:
    for name, content in {"tokenizer_config": TOKENS, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def transformers_text(template: str, messages: list[Any], **options: Any) -> str:
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **TOKENS)
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def as_parts(message: Message) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}


def as_string(message: Message) -> dict[str, Any]:
    images = message.content.count(ImagePart())
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    return {"role": message.role, "content": "<image>\n" * images + "\n".join(texts)}


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("template", TAKE_PARTS.values(), ids=TAKE_PARTS)
def test_template_that_takes_parts_renders_as_in_transformers(
    template: str, messages: list[Message], add_generation_prompt: bool, tmp_path: Path
) -> None:
    ours = ChatTemplate.from_dir(checkpoint(tmp_path, template))
    listed = [as_parts(message) for message in messages]
    options = {"add_generation_prompt": add_generation_prompt}
    assert ours.render(messages, **options) == transformers_text(template, listed, **options)


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("template", TAKE_STRINGS.values(), ids=TAKE_STRINGS)
def test_template_that_takes_strings_gets_images_as_lines_at_the_front(
    template: str, messages: list[Message], add_generation_prompt: bool, tmp_path: Path
) -> None:
    ours = ChatTemplate.from_dir(checkpoint(tmp_path, template))
    listed = [as_string(message) for message in messages]
    options = {"add_generation_prompt": add_generation_prompt}
    assert ours.render(messages, **options) == transformers_text(template, listed, **options)


SOURCES = ("processor_config", "chat_template", "jinja", "tokenizer_config")


@pytest.mark.parametrize(
    "present", [it for n in range(5) for it in itertools.combinations(SOURCES, n)], ids=str
)
def test_template_is_found_where_transformers_finds_it(
    present: tuple[str, ...], tmp_path: Path
) -> None:
    Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")).save(
        str(tmp_path / "tokenizer.json")
    )
    files = {
        name: {"chat_template": f"from {name}"} if name in present else {}
        for name in ("processor_config", "chat_template", "tokenizer_config")
    }
    if "chat_template" not in present:
        del files["chat_template"]
    checkpoint(
        tmp_path,
        "from jinja" if "jinja" in present else None,
        config={"model_type": "llava"},
        **files,
    )
    of_processor = LlavaProcessor.get_processor_dict(tmp_path)[0].get("chat_template")
    expected = of_processor or AutoTokenizer.from_pretrained(tmp_path).chat_template
    rendered = ChatTemplate.from_dir(tmp_path).render(
        [Message("user", (TextPart("Hi"),))], add_generation_prompt=False
    )
    assert rendered == (expected or "USER: Hi ")


@pytest.mark.parametrize("name", ["tokenizer_config", "processor_config", "chat_template"])
@pytest.mark.parametrize(
    "named",
    [
        [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}],
        {"default": "plain", "rag": "documents"},
    ],
    ids=["list", "object"],
)
def test_default_is_taken_when_templates_are_named(name: str, named: Any, tmp_path: Path) -> None:
    ours = ChatTemplate.from_dir(checkpoint(tmp_path, **{name: {"chat_template": named}}))
    assert ours.render(CONVERSATIONS["one question"], add_generation_prompt=True) == "plain"


def test_templates_without_a_default_are_refused_with_their_names(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "rag", "template": "x"}]}
    with pytest.raises(InputError, match=r"rag.*none called default"):
        ChatTemplate.from_dir(checkpoint(tmp_path, tokenizer_config=config))


def test_special_tokens_map_names_the_tokens_when_the_config_does_not(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}"
    tokens = {"bos_token": {"content": "<B>", "lstrip": False}, "eos_token": "<E>"}
    files = {"tokenizer_config": {}, "special_tokens_map": tokens}
    ours = ChatTemplate.from_dir(checkpoint(tmp_path, template, **files))
    assert ours.render(CONVERSATIONS["image"], add_generation_prompt=True) == "<B><E>"


@pytest.mark.parametrize(
    ("files", "token"),
    [
        ({}, "<image>"),
        ({"processor_config": {"image_token": "<p>"}}, "<p>"),
        (
            {
                "processor_config": {"image_token": "<p>"},
                "tokenizer_config": {"extra_special_tokens": {"image_token": "<t>"}},
            },
            "<t>",
        ),
    ],
)
def test_image_token_is_the_one_the_checkpoint_names(
    files: dict[str, Any], token: str, tmp_path: Path
) -> None:
    ours = ChatTemplate.from_dir(checkpoint(tmp_path, CHATML, **files))
    assert ours.image_token == token
    rendered = ours.render(CONVERSATIONS["two images"], add_generation_prompt=False)
    assert rendered == f"<|im_start|>user\n{token}\n{token}\nWhich is older?<|im_end|>\n"


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        ("image", "USER: <image>\nWhat is it? ASSISTANT:"),
        ("two images", "USER: <image>\n<image>\nWhich is older? ASSISTANT:"),
        (
            "system and turns",
            "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: What now? ASSISTANT:",
        ),
    ],
)
def test_checkpoint_without_a_template_gets_llava_15s(
    conversation: str, expected: str, tmp_path: Path
) -> None:
    ours = ChatTemplate.from_dir(tmp_path)
    assert ours.render(CONVERSATIONS[conversation], add_generation_prompt=True) == expected


def test_built_in_template_closes_answers_with_the_checkpoints_eos(tmp_path: Path) -> None:
    checkpoint(tmp_path, tokenizer_config={"eos_token": "<{end}>"})
    messages = CONVERSATIONS["system and turns"][1:3]
    rendered = ChatTemplate.from_dir(tmp_path).render(messages, add_generation_prompt=False)
    assert rendered == "USER: <image>\nWhat is it? ASSISTANT: A cat.<{end}>"


def test_built_in_template_refuses_a_role_it_does_not_know(tmp_path: Path) -> None:
    messages = [Message("tool", (TextPart("42"),))]
    with pytest.raises(InputError, match="tool"):
        ChatTemplate.from_dir(tmp_path).render(messages, add_generation_prompt=True)


@pytest.mark.parametrize("template", [None, CHATML])
def test_conversation_without_messages_is_refused(template: str | None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no message"):
        ChatTemplate.from_dir(checkpoint(tmp_path, template)).render([], add_generation_prompt=True)


def test_message_the_template_raises_is_passed_on(tmp_path: Path) -> None:
    ours = ChatTemplate.from_dir(checkpoint(tmp_path, LLAMA_2))
    with pytest.raises(InputError, match=r"chat_template\.jinja.*Turns must alternate"):
        ours.render(CONVERSATIONS["image"] * 2, add_generation_prompt=True)


def test_syntax_error_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"chat_template\.jinja, line 2: "):
        ChatTemplate.from_dir(checkpoint(tmp_path, "fine\n{% for m in %}{% endfor %}"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ dict.__class__.__base__ }}",
        "{{ dict.fromkeys.__func__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% set ns = namespace() %}{% set ns.__html__ = dict %}",
        "{{ namespace(__call__=dict) }}",
    ],
)
def test_template_that_reaches_out_of_the_sandbox_is_refused(template: str, tmp_path: Path) -> None:
    ours = ChatTemplate.from_dir(checkpoint(tmp_path, template))
    with pytest.raises(InputError, match="tries to leave its sandbox"):
        ours.render(CONVERSATIONS["one question"], add_generation_prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        "{% include 'other' %}",
        "{{ range(10 ** 9) | list }}",
        "{{ messages[0].nothing.at_all }}",
        "{{ 1 / 0 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_template_that_fails_is_refused(template: str, tmp_path: Path) -> None:
    ours = ChatTemplate.from_dir(checkpoint(tmp_path, template))
    with pytest.raises(InputError, match=r"chat_template\.jinja cannot render"):
        ours.render(CONVERSATIONS["one question"], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff"),
        ("chat_template.json", b"{"),
        ("processor_config.json", b'{"chat_template": 5}'),
        ("processor_config.json", b'{"image_token": 5}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}'),
    ],
)
def test_damaged_file_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        ChatTemplate.from_dir(tmp_path)
    assert name in raised.value.what
