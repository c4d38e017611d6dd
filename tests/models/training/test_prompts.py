"""Conversations as rows: what is supervised, with several kinds of templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.models.training.conftest import MakeCheckpoint
from transformers import AutoTokenizer

from atp_models.training.prompts import ConversationWriter, answer_numbers
from atp_models.training.records import Record, Turn
from atp_models.training.rows import TokenRow
from atp_runtime.errors import InputError

IMAGE, FEATURES, END = 504, 4, 2
CHATML = (
    "{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
REWRITING = (
    "{% for message in messages %}{% if not loop.last or message['role'] == 'user' %}"
    "{{ message['content'] }}\n{% else %}!{{ message['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture
def tokenizer(make_checkpoint: MakeCheckpoint) -> Any:
    return AutoTokenizer.from_pretrained(make_checkpoint())


def writer(tokenizer: Any, template: str | None, **options: Any) -> ConversationWriter:
    chosen = {"image_features": FEATURES, "end_ids": (END,), "max_length": 500, **options}
    return ConversationWriter(tokenizer, template, image_token_id=IMAGE, **chosen)


def conversation(*texts: str, images: int = 1, system: str | None = None) -> Record:
    turns = [Turn("system", system)] if system else []
    turns += [Turn(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]
    return Record("talk", tuple(Path(f"{n}.png") for n in range(images)), tuple(turns), "talk")


def learnt(row: TokenRow, tokenizer: Any) -> list[str]:
    """The text that each answer's targets spell."""
    numbers = answer_numbers(row)
    return [
        tokenizer.decode(row.targets[numbers == number]) for number in range(int(numbers.max()) + 1)
    ]


@pytest.mark.parametrize("kind", ["parts", "strings", "none"])
def test_answers_and_the_token_that_ends_them_are_learnt(tokenizer: Any, kind: str) -> None:
    template = {"parts": tokenizer.chat_template, "strings": CHATML, "none": None}[kind]

    row = writer(tokenizer, template).row(conversation("What?", "A dog.", "Sure?", "Yes."))

    assert [text.strip() for text in learnt(row, tokenizer)] == ["A dog.</s>", "Yes.</s>"]
    assert int((row.ids == IMAGE).sum()) == FEATURES
    assert row.images == 1


def test_the_prompt_is_the_one_that_inference_renders(tokenizer: Any) -> None:
    record = conversation("What?", "A dog.")
    row = writer(tokenizer, tokenizer.chat_template).row(record)
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )

    ids = tokenizer(prompt)["input_ids"]
    place = ids.index(IMAGE)
    expanded = ids[:place] + [IMAGE] * FEATURES + ids[place + 1 :]

    first = int((row.targets >= 0).nonzero()[0])
    assert row.ids[: first + 1].tolist() == expanded


def test_a_template_without_end_token_goes_on_without_one(tokenizer: Any) -> None:
    row = writer(tokenizer, tokenizer.chat_template).row(conversation("What?", "A", "So?", "B"))

    assert END not in row.ids.tolist()
    assert row.targets.tolist().count(END) == 2


def test_an_end_token_of_the_template_is_learnt_where_it_stands_and_nothing_behind_it(
    tokenizer: Any,
) -> None:
    row = writer(tokenizer, CHATML).row(conversation("What?", "A dog.", "So?", "B"))

    shifted = row.targets[:-1]
    assert (shifted[shifted >= 0] == row.ids[1:][shifted >= 0]).all()
    assert row.targets.tolist().count(END) == 2


def test_asking_is_the_text_between_the_last_image_and_the_first_answer(tokenizer: Any) -> None:
    row = writer(tokenizer, CHATML).row(
        conversation("What?", "A dog.", "So?", "B", images=2, system="Kind.")
    )

    assert tokenizer.decode(row.ids[row.asking]) == "\nWhat?</s>\n[assistant]\n"
    assert row.images == 2


def test_long_conversations_lose_their_last_turns(tokenizer: Any) -> None:
    whole = conversation("What?", "A dog.", "Sure?", "Yes.", "Why?", "Because.")
    length = len(writer(tokenizer, CHATML).row(whole))

    row = writer(tokenizer, CHATML, max_length=length - 1).row(whole)

    assert [text.strip() for text in learnt(row, tokenizer)] == ["A dog.</s>", "Yes.</s>"]


def test_a_first_answer_that_is_too_long_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"talk: its first question and answer are \d+ tokens"):
        writer(tokenizer, CHATML, max_length=20).row(conversation("What?", "A dog.", "So?", "B"))


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="changes what it wrote before"):
        writer(tokenizer, REWRITING).row(conversation("What?", "A", "So?", "B", images=0))


def test_an_answer_that_the_tokenizer_joins_to_its_question_is_refused(tokenizer: Any) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="joins the end of a question"):
        writer(tokenizer, template).row(conversation("a", "t", images=0))


def test_placeholders_in_the_text_are_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="2 image placeholders for 1 images"):
        writer(tokenizer, CHATML).row(conversation("What is <image>?", "A dog."))
