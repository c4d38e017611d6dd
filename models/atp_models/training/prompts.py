"""Conversations as token ids, with the checkpoint's own template, answers marked.

A conversation is rendered turn by turn: what the template adds when an answer is added is what
is learnt of it, up to and with the token that ends it. A template that writes no such token
(LLaVA-1.5's as Transformers publishes it) has the model learn its end-of-sequence token there,
though the conversation goes on without it, as it does at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from atp_models.training.records import Record, Turn
from atp_models.training.rows import TokenRow, make_row
from atp_runtime.errors import InputError

# LLaVA-1.5's conversation, for a checkpoint that brings no template.
VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_PROBE = "probe-of-a-text-part"


@dataclass(frozen=True)
class _Tokenised:
    """A conversation's tokens, an image being one of them.

    Attributes:
        ids: Token ids.
        answers: [start, end) of what is learnt of each answer.
        closing: Of each answer, the id to learn behind it that does not stand there, or None.
    """

    ids: list[int]
    answers: list[tuple[int, int]]
    closing: list[int | None]


class ConversationWriter:
    """Turns records into rows.

    Args:
        tokenizer: The checkpoint's, of Transformers.
        template: The checkpoint's chat template, None if it has none.
        image_token_id: The placeholder of an image.
        image_features: Features per image.
        end_ids: Ids that end an answer at inference, the first being the one to learn where the
            template writes none.
        max_length: Of a row in tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        *,
        image_token_id: int,
        image_features: int,
        end_ids: Sequence[int],
        max_length: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template or VICUNA
        self._image_token_id = image_token_id
        self._image_token = tokenizer.convert_ids_to_tokens(image_token_id)
        self._image_features = image_features
        self._end_ids = tuple(end_ids)
        self._max_length = max_length
        self._takes_parts = self._renders_parts()

    def row(self, record: Record) -> TokenRow:
        """A record as a row, without its last turns where it is longer than `max_length`.

        Raises:
            InputError: The first question and answer alone are longer, the template rewrites
                earlier turns, or the tokenizer joins a question's end with its answer.
        """
        turns = record.turns
        while True:
            tokenised = self._tokenise(turns, record)
            length = len(tokenised.ids) + len(record.images) * (self._image_features - 1)
            if length <= self._max_length:
                return self._as_row(tokenised)
            if len(turns) <= (2 if record.system is None else 3):
                raise InputError(
                    f"{record.name}: its first question and answer are {length} tokens",
                    why=f"rows are cut to {self._max_length} tokens between turns, and this is "
                    "the first.",
                    fix="raise --max-length, or shorten the record.",
                )
            turns = turns[:-2]

    def _as_row(self, tokenised: _Tokenised) -> TokenRow:
        ids: list[int] = []
        supervised: list[bool] = []
        learnt = {at for start, end in tokenised.answers for at in range(start, end)}
        closing: dict[int, int] = {}
        ends = {
            end - 1: token
            for (_, end), token in zip(tokenised.answers, tokenised.closing, strict=True)
            if token is not None
        }
        for at, token in enumerate(tokenised.ids):
            copies = self._image_features if token == self._image_token_id else 1
            ids += [token] * copies
            supervised += [at in learnt] * copies
            if at in ends:
                closing[len(ids) - 1] = ends[at]
        row = make_row(
            ids,
            supervised,
            image_token_id=self._image_token_id,
            image_features=self._image_features,
        )
        for place, token in closing.items():
            row.targets[place] = token
        return row

    def _tokenise(self, turns: Sequence[Turn], record: Record) -> _Tokenised:
        text = self._render(turns, len(record.images), prompt=False)
        encoded = self._encode(text, offsets=True)
        ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
        answers, closing = [], []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = self._render(turns[:number], len(record.images), prompt=True)
            told = self._render(turns[: number + 1], len(record.images), prompt=False)
            _require(text.startswith(told) and told.startswith(prompt), record, _REWRITES)
            before = self._encode(prompt)["input_ids"]
            _require(ids[: len(before)] == before, record, _JOINS)
            end = len(before)
            while end < len(ids) and starts[end] < len(told.rstrip()):
                end += 1
                if ids[end - 1] in self._end_ids:
                    break
            _require(end > len(before), record, _SILENT)
            ended = ids[end - 1] in self._end_ids
            answers.append((len(before), end))
            closing.append(None if ended or not self._end_ids else self._end_ids[0])
        if ids.count(self._image_token_id) != len(record.images):
            raise _places(record, ids.count(self._image_token_id))
        return _Tokenised(ids, answers, closing)

    def _encode(self, text: str, *, offsets: bool = False) -> Any:
        """Token ids, with BOS once, whether or not the template wrote it."""
        start = self._tokenizer.bos_token
        begun = start is not None and text.startswith(start)
        return self._tokenizer(
            text, add_special_tokens=not begun, return_offsets_mapping=offsets, verbose=False
        )

    def _render(self, turns: Sequence[Turn], images: int, *, prompt: bool) -> str:
        first = next((at for at, turn in enumerate(turns) if turn.role == "user"), -1)
        messages = [
            {"role": turn.role, "content": self._content(turn.text, images * (at == first))}
            for at, turn in enumerate(turns)
        ]
        return self._apply(messages, prompt=prompt)

    def _apply(self, messages: list[dict[str, Any]], *, prompt: bool) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return rendered

    def _content(self, text: str, images: int) -> Any:
        if self._takes_parts:
            return [{"type": "image"}] * images + [{"type": "text", "text": text}]
        return "\n".join([self._image_token] * images + [text])

    def _renders_parts(self) -> bool:
        """Whether the template understands content that is a list of parts, images included.

        It is tried out: one made for strings fails on a list, prints it as it stands, or leaves
        the image out.
        """
        content = [{"type": "image"}, {"type": "text", "text": _PROBE}]
        try:
            rendered = self._apply([{"role": "user", "content": content}], prompt=False)
        except Exception:  # whatever a stranger's program ends with
            return False
        return self._image_token in rendered and _PROBE in rendered


_REWRITES = (
    "the chat template changes what it wrote before when a turn is added",
    "the tokens that an answer adds cannot be told from its question's.",
    "use a template that only appends, in chat_template.jinja of the checkpoint.",
)
_SILENT = (
    "the chat template writes nothing for an answer",
    "there is nothing to learn from it.",
    "use a template that writes answers, in chat_template.jinja of the checkpoint.",
)
_JOINS = (
    "the tokenizer joins the end of a question with its answer",
    "at inference the question is tokenised alone, so the model would see other tokens.",
    "leave the record out, or end the template's prompt with a special token or a line break.",
)


def _require(holds: bool, record: Record, message: tuple[str, str, str]) -> None:
    if not holds:
        what, why, fix = message
        raise InputError(f"{record.name}: {what}", why=why, fix=fix)


def _places(record: Record, found: int) -> InputError:
    return InputError(
        f"{record.name}: {found} image placeholders for {len(record.images)} images",
        why="the chat template must write one for each image, and no text may hold one.",
        fix="use a chat template with places for images, or correct the record.",
    )


def answer_numbers(row: TokenRow) -> torch.Tensor:
    """Which answer of its row each supervised place belongs to, int64 [tokens], -1 elsewhere."""
    learnt = row.targets >= 0
    begins = learnt & ~torch.nn.functional.pad(learnt[:-1], (1, 0))
    return torch.where(learnt, begins.cumsum(0) - 1, -1)
