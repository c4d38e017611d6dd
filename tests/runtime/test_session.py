"""What a session answers and prunes, against the library that defines the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.runtime.forced_selection import keep_all
from transformers import AutoProcessor, LlavaForConditionalGeneration

from atp_runtime.chat import ChatTemplate
from atp_runtime.generation import GenerationOptions
from atp_runtime.jinja_sandbox import CompiledTemplate
from atp_runtime.prompt import PromptWriter
from atp_runtime.sampling import SamplingOptions
from atp_runtime.session import Session

SHORT = GenerationOptions(max_new_tokens=12)


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, threads=1) as session:
        yield session


@pytest.fixture
def session(opened: Session) -> Iterator[Session]:
    """Prunes as the bundle says; a test may change `model.select`."""
    own = opened.model.select
    yield opened
    opened.model.select = own


@pytest.fixture
def unpruned(session: Session) -> Session:
    session.model.select = keep_all
    return session


@dataclass
class Transformers:
    """The checkpoint, run by the library that defines it, without caches between turns."""

    model: LlavaForConditionalGeneration
    processor: object

    def prompt(self, turns: Sequence[tuple[str, str, Sequence[Path]]]) -> dict[str, torch.Tensor]:
        messages = []
        for role, text, photos in turns:
            images = [{"type": "image", "path": str(path)} for path in photos]
            messages.append({"role": role, "content": [*images, {"type": "text", "text": text}]})
        return self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def answer(self, turns: Sequence[tuple[str, str, Sequence[Path]]], tokens: int) -> list[int]:
        prompt = self.prompt(turns)
        with torch.no_grad():
            ids = self.model.generate(**prompt, do_sample=False, max_new_tokens=tokens)
        return ids[0, prompt["input_ids"].shape[1] :].tolist()

    def continue_ids(self, ids: list[int], photos: Sequence[Path], tokens: int) -> list[int]:
        images = [Image.open(path) for path in photos]
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found = self.model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=pixels,
                do_sample=False,
                max_new_tokens=tokens,
            )
        return found[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def transformers(tiny) -> Transformers:
    return Transformers(
        LlavaForConditionalGeneration.from_pretrained(tiny.checkpoint).eval(),
        AutoProcessor.from_pretrained(tiny.checkpoint),
    )


MARKS_SECOND_QUESTION_WHILE_IT_IS_THE_LAST = """
{%- for message in messages %}{{ message['role'].upper() }}: \
{%- if loop.index0 == 2 and loop.last %}(now) {% endif %}\
{%- for part in message['content'] %}\
{%- if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}\
{%- endfor %}{% endfor %}ASSISTANT:"""


@contextmanager
def template(session: Session, jinja: str) -> Iterator[None]:
    model = session.model
    own = model.writer
    compiled = CompiledTemplate(jinja, "a test")
    template = ChatTemplate(compiled, image_token="<image>", special_tokens={})
    model.writer = PromptWriter(template, model.tokenizer, model.manifest.vision.image_token_id)
    yield
    model.writer = own


# What is answered


@pytest.mark.parametrize("images", [0, 1, 2], ids=["text only", "one image", "two images"])
def test_greedy_answer_is_that_of_transformers_when_nothing_is_pruned(
    unpruned: Session, transformers: Transformers, photos: list[Path], images: int
) -> None:
    shown = photos[:images]
    found = unpruned.ask("What is this?", shown, GenerationOptions(48))
    assert list(found.ids) == transformers.answer([("user", "What is this?", shown)], 48)
    assert found.text == transformers.processor.decode(found.ids, skip_special_tokens=True)


def test_system_prompt_is_put_where_transformers_puts_it(
    unpruned: Session, transformers: Transformers, photos: list[Path]
) -> None:
    found = unpruned.conversation("Be brief.").ask("What?", photos[:1], SHORT)
    turns = [("system", "Be brief.", ()), ("user", "What?", photos[:1])]
    assert list(found.ids) == transformers.answer(turns, 12)


def test_later_answers_are_those_of_the_whole_conversation_run_at_once(
    unpruned: Session, transformers: Transformers, photos: list[Path]
) -> None:
    conversation = unpruned.conversation("Be brief.")
    turns: list[tuple[str, str, Sequence[Path]]] = [("system", "Be brief.", ())]
    asked = [("What is this?", photos[:1]), ("Why?", ()), ("And these?", photos[1:]), ("So?", ())]
    before = 0
    for question, shown in asked:
        turns.append(("user", question, shown))
        found = conversation.ask(question, shown, SHORT)
        assert list(found.ids) == transformers.answer(turns, 12), question
        length = transformers.prompt(turns)["input_ids"].shape[1]
        assert found.statistics.prompt_tokens + found.statistics.reused_tokens == length
        assert found.statistics.reused_tokens >= before
        before = length
        turns.append(("assistant", found.text, ()))


def test_only_new_tokens_are_run_when_a_conversation_goes_on(
    session: Session, transformers: Transformers, photos: list[Path]
) -> None:
    conversation = session.conversation()
    first = conversation.ask("What is this?", photos[:1], SHORT)
    second = conversation.ask("Why?", (), SHORT)
    turns = [("user", "What is this?", photos[:1])]
    in_caches = transformers.prompt(turns)["input_ids"][0].tolist() + list(first.ids[:-1])
    turns += [("assistant", first.text, ()), ("user", "Why?", ())]
    ids = transformers.prompt(turns)["input_ids"][0].tolist()
    same = [a == b for a, b in zip(in_caches, ids, strict=False)]
    reused = same.index(False) if False in same else len(same)
    assert reused > 16
    assert second.statistics.reused_tokens == reused
    assert second.statistics.prompt_tokens == len(ids) - reused


def test_pieces_join_to_the_answer_when_it_is_streamed(
    session: Session, photos: list[Path]
) -> None:
    pieces: list[str] = []
    answer = session.ask("What is this?", photos[:1], GenerationOptions(48), pieces.append)
    assert len(pieces) > 10
    assert "".join(pieces) == answer.text


def test_answer_ends_before_a_stop_string_when_it_comes(
    session: Session, photos: list[Path]
) -> None:
    whole = session.ask("What is this?", photos[:1], SHORT).text
    stop = whole[4:6]
    answer = session.ask("What is this?", photos[:1], GenerationOptions(12, stop=(stop,)))
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_sampled_answers_repeat_when_the_seed_does(session: Session, photos: list[Path]) -> None:
    def sampled(seed: int) -> tuple[int, ...]:
        options = GenerationOptions(24, SamplingOptions(temperature=1.5, top_k=50, seed=seed))
        return session.ask("What is this?", photos[:1], options).ids

    assert sampled(3) == sampled(3)
    assert sampled(3) != sampled(4)


def test_photos_may_be_files_pillow_images_or_read_before(
    session: Session, photos: list[Path]
) -> None:
    sources = [photos[0], str(photos[0]), Image.open(photos[0])]
    sources.append(session.model.vision.read(photos[0]))
    answers = [session.ask("What is this?", [source], SHORT).ids for source in sources]
    assert len(set(answers)) == 1


def test_earlier_photos_are_run_again_when_the_template_rewrites_their_turn(
    unpruned: Session, transformers: Transformers, photos: list[Path]
) -> None:
    conversation = unpruned.conversation()
    with template(unpruned, MARKS_SECOND_QUESTION_WHILE_IT_IS_THE_LAST):
        conversation.ask("What is this?", photos[:1], SHORT)
        second = conversation.ask("And this?", photos[1:2], SHORT)
        third = conversation.ask("And this?", photos[2:], SHORT)
        writer = unpruned.model.writer
        draft = writer.draft(conversation._transcript.messages[:-1])
        ids = writer.ids(draft, [16, 16, 16])
    assert second.statistics.visual_tokens == 16
    assert third.statistics.visual_tokens == 32
    assert 16 < third.statistics.reused_tokens == second.statistics.reused_tokens
    assert set(third.chunk.image.tolist()) == {-1, 1, 2}
    assert list(third.ids) == transformers.continue_ids(ids, photos, 12)


# What is pruned


def test_later_segments_hold_fewer_positions_when_tokens_are_pruned(
    session: Session, photos: list[Path]
) -> None:
    answer = session.ask("What is this?", photos[:1], SHORT)
    entered, kept = answer.statistics.visual_tokens, [p.kept for p in answer.statistics.points]
    fed = len(answer.ids) - 1
    prompt = answer.statistics.prompt_tokens
    assert entered == 16
    assert session.model.decoder.state.position == prompt + fed
    assert session.model.decoder.state.lengths == tuple(
        prompt - entered + left + fed for left in (entered, *kept)
    )
    assert kept[-1] < entered


def test_points_index_the_turns_own_tokens_when_images_came_before(
    session: Session, photos: list[Path]
) -> None:
    conversation = session.conversation()
    conversation.ask("What is this?", photos[:1], SHORT)
    answer = conversation.ask("And these?", photos[1:], SHORT)
    assert len(answer.photos) == 3
    assert sorted(set(answer.chunk.image.tolist())) == [-1, 1, 2]
    for point in answer.points:
        assert set(answer.chunk.image[np.setdiff1d(point.entered, point.kept)]) <= {1, 2}


def test_nothing_is_said_about_pruning_when_a_turn_has_no_image(
    session: Session, photos: list[Path]
) -> None:
    conversation = session.conversation()
    conversation.ask("What is this?", photos[:1], SHORT)
    answer = conversation.ask("Why?", (), SHORT)
    assert answer.points == ()
    assert answer.statistics.points == ()
    assert answer.statistics.mean_visual_tokens is None
    assert len(answer.photos) == 1
