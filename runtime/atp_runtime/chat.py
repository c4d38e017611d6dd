r"""Turns a conversation into the prompt a checkpoint was trained on.

The template comes from the checkpoint, found where Transformers 5 finds it for a LLaVA
checkpoint. One without any gets LLaVA-1.5's: `USER: <image>\nQuestion ASSISTANT: Answer</s>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from atp_runtime.errors import InputError
from atp_runtime.jinja_sandbox import CompiledTemplate
from atp_runtime.special_tokens import SpecialTokens, read_special_tokens
from atp_runtime.text_files import read_json_if_present, read_text_if_present, wrong_form

_PROBE_TEXT = "probe-of-a-text-part"


@dataclass(frozen=True)
class TextPart:
    """Words in a message."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """The place of an image in a message."""


Part: TypeAlias = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`, or what else the template knows.
        content: The parts, in the order in which they are to be read.
    """

    role: str
    content: tuple[Part, ...]


class ChatTemplate:
    """Renders conversations for one checkpoint; `ChatTemplate.from_dir` makes one.

    Attributes:
        image_token: The text that stands for one image in a rendered conversation.
    """

    def __init__(
        self,
        template: CompiledTemplate | None,
        *,
        image_token: str,
        special_tokens: Mapping[str, str],
    ) -> None:
        """Makes a template of a compiled one, or LLaVA-1.5's where there is none.

        Args:
            template: The compiled template, or None.
            image_token: The text that stands for one image.
            special_tokens: What the template may name, `bos_token` and `eos_token` for example.
        """
        self.image_token = image_token
        self._template = template
        self._special_tokens = special_tokens
        self._takes_parts = template is not None and self._renders_parts(template)

    @classmethod
    def from_dir(cls, processor_dir: Path) -> ChatTemplate:
        """Finds and compiles the template of a checkpoint.

        Looked for in this order: `chat_template` in `processor_config.json`,
        `chat_template.json`, `chat_template.jinja`, `chat_template` in `tokenizer_config.json`.
        Of several named templates, the one called `default` is taken.

        Args:
            processor_dir: Directory with the checkpoint's text files.

        Raises:
            InputError: A file is damaged, or the template has a syntax error.
        """
        special = read_special_tokens(processor_dir)
        found = _find_template(processor_dir)
        return cls(
            CompiledTemplate(*found) if found else None,
            image_token=_image_token(processor_dir, special),
            special_tokens={role: token.content for role, token in special.named.items()},
        )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The conversation as the text of one prompt.

        A template that takes the parts of a message gets them in their order. For one that takes
        only a string, the message's images come first, each the image token on a line of its own.

        Args:
            messages: The conversation so far, not empty.
            add_generation_prompt: Whether to end with what begins the assistant's next turn.

        Raises:
            InputError: There is no message, or the template refuses the conversation.
        """
        if not messages:
            raise InputError(
                "the conversation has no message",
                why="there is nothing to answer",
                fix="ask something",
            )
        if self._template is None:
            return self._render_vicuna(messages, add_generation_prompt)
        listed = [
            _as_list(message)
            if self._takes_parts
            else {"role": message.role, "content": self._as_string(message)}
            for message in messages
        ]
        return self._template.render(self._variables(listed, add_generation_prompt))

    def _variables(
        self, listed: list[dict[str, Any]], add_generation_prompt: bool
    ) -> dict[str, Any]:
        return {
            **self._special_tokens,
            "messages": listed,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }

    def _renders_parts(self, template: CompiledTemplate) -> bool:
        """Whether the template understands content that is a list of parts, images included.

        It is tried out: a template made for strings fails on a list, prints it as it stands, or
        takes its texts alone; in no case does the image token appear.
        """
        probe = [_as_list(Message("user", (ImagePart(), TextPart(_PROBE_TEXT))))]
        try:
            rendered = template.render(self._variables(probe, add_generation_prompt=False))
        except InputError:
            return False
        return self.image_token in rendered and _PROBE_TEXT in rendered

    def _as_string(self, message: Message) -> str:
        images = [self.image_token for part in message.content if isinstance(part, ImagePart)]
        texts = [part.text for part in message.content if isinstance(part, TextPart)]
        return "\n".join([*images, *texts])

    def _render_vicuna(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """LLaVA-1.5's conversation (Vicuna v1): turns end with a space, answers with EOS."""
        around = {
            "system": ("", " "),
            "user": ("USER: ", " "),
            "assistant": ("ASSISTANT: ", self._special_tokens.get("eos_token", "</s>")),
        }
        prompt = ""
        for message in messages:
            if message.role not in around:
                raise InputError(
                    f"a message has the role {message.role!r}",
                    why="the checkpoint brings no chat template, and the built-in one of "
                    f"LLaVA-1.5 knows {', '.join(around)}",
                    fix="use one of these roles, or a checkpoint with a chat template",
                )
            before, behind = around[message.role]
            prompt += before + self._as_string(message) + behind
        return prompt + "ASSISTANT:" if add_generation_prompt else prompt


def _as_list(message: Message) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        for part in message.content
    ]
    return {"role": message.role, "content": content}


def _find_template(processor_dir: Path) -> tuple[str, str] | None:
    """The text of the checkpoint's template and where it was, or None."""
    for name in ("processor_config.json", "chat_template.json"):
        found = _template_in_json(processor_dir / name)
        if found:
            return found
    path = processor_dir / "chat_template.jinja"
    text = read_text_if_present(path)
    if text is not None:
        return text, str(path)
    return _template_in_json(processor_dir / "tokenizer_config.json")


def _template_in_json(path: Path) -> tuple[str, str] | None:
    value = read_json_if_present(path).get("chat_template")
    if value is None:
        return None
    if isinstance(value, str):
        return value, f"the chat template in {path}"
    try:
        named = value if isinstance(value, dict) else {it["name"]: it["template"] for it in value}
    except (KeyError, TypeError) as error:
        raise wrong_form(path, "has a chat_template that is neither text nor a list") from error
    default = named.get("default")
    if not isinstance(default, str):
        raise InputError(
            f"{path} has the chat templates {', '.join(map(str, named))} but none called default",
            why="nothing says which of them this model's conversations use",
            fix="name one of them default, or put it alone into chat_template.jinja",
        )
    return default, f"the chat template default in {path}"


def _image_token(processor_dir: Path, special: SpecialTokens) -> str:
    path = processor_dir / "processor_config.json"
    token = special.content("image_token") or read_json_if_present(path).get("image_token")
    if token is None:
        return "<image>"
    if not isinstance(token, str):
        raise wrong_form(path, f"has the image_token {token!r}, which is no text")
    return token
