import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from atp_runtime.chat import ChatTemplate
from atp_runtime.conversation import Conversation
from atp_runtime.errors import CheckFailedError, InputError, MachineError
from atp_runtime.generation import GeneratedText, GenerationOptions, generate
from atp_runtime.jinja_sandbox import CompiledTemplate
from atp_runtime.manifest import dump_manifest, read_manifest
from atp_runtime.prompt import PromptWriter
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.sampling import SamplingOptions
from atp_runtime.selection import Selection, VisualTokens
from atp_runtime.session import Session

SHORT = GenerationOptions(max_new_tokens=12)


def keep_all(
    _point: PruningPoint, _self: np.ndarray, _cross: np.ndarray, _text: bool, visual: VisualTokens
) -> Selection:
    return Selection(np.ones(len(visual), dtype=np.bool_))


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


# What goes wrong


@pytest.mark.parametrize("after", [1, 4])
def test_conversation_goes_on_as_if_nothing_was_when_an_answer_is_interrupted(
    session: Session, photos: list[Path], after: int
) -> None:
    def converse(*, interrupted: bool) -> list[tuple[int, ...]]:
        conversation = session.conversation()
        answers = [conversation.ask("What is this?", photos[:1], SHORT)]
        if interrupted:
            interrupt(conversation, "Never mind", photos[1:2], after)
        answers.append(conversation.ask("Why?", photos[2:], SHORT))
        answers.append(conversation.ask("So?", (), SHORT))
        assert [photo.image.size for photo in answers[-1].photos] == [(64, 48), (32, 32)]
        return [answer.ids for answer in answers]

    assert converse(interrupted=True) == converse(interrupted=False)


def interrupt(conversation: Conversation, question: str, shown: list[Path], after: int) -> None:
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask(question, shown, SHORT, show)


def test_other_photo_is_looked_at_when_the_same_prompt_was_interrupted_with_one(
    session: Session, photos: list[Path]
) -> None:
    # But for the photo, this prompt begins with all of the interrupted one.
    longer = "What? ASSISTANT: x"
    expected = session.ask(longer, photos[1:2], SHORT)
    conversation = session.conversation()
    interrupt(conversation, "What?", photos[:1], 1)
    answer = conversation.ask(longer, photos[1:2], SHORT)
    assert answer.statistics.reused_tokens == 0
    assert answer.ids == expected.ids


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


@pytest.mark.parametrize("error", [CheckFailedError, MachineError, KeyboardInterrupt])
def test_conversation_goes_on_when_a_prefill_fails(
    session: Session, photos: list[Path], error: type[BaseException]
) -> None:
    own = session.model.select

    def failing(point: PruningPoint, *rest: object) -> Selection:
        if point.before_layer == 2:
            raise error("no", why="no.", fix="no.") if error is not KeyboardInterrupt else error
        return own(point, *rest)

    def converse(*, failed: bool) -> tuple[int, ...]:
        conversation = session.conversation()
        conversation.ask("What is this?", photos[:1], SHORT)
        if failed:
            session.model.select = failing
            with pytest.raises(error):
                conversation.ask("Never mind", photos[1:2], SHORT)
            session.model.select = own
        return conversation.ask("Why?", photos[2:], SHORT).ids

    assert converse(failed=True) == converse(failed=False)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_question_is_refused_when_it_is_empty(session: Session, question: str) -> None:
    with pytest.raises(InputError, match="the question is empty"):
        session.ask(question)


def test_placeholder_is_refused_when_it_is_typed(session: Session, photos: list[Path]) -> None:
    with pytest.raises(InputError, match="the question contains <image>"):
        session.ask("<image>\nWhat is this?", photos[:1])
    with pytest.raises(InputError, match="the system prompt contains <image>"):
        session.conversation("You see <image>.")


def test_conversation_goes_on_when_the_model_itself_says_the_placeholder(
    session: Session, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def says_placeholder(*arguments: object) -> GeneratedText:
        return replace(generate(*arguments), text="That is an <image>.")

    conversation = session.conversation()
    with monkeypatch.context() as patched:
        patched.setattr("atp_runtime.conversation.generate", says_placeholder)
        assert conversation.ask("What?", photos[:1], SHORT).text == "That is an <image>."
    assert conversation.ask("Why?", (), SHORT).statistics.visual_tokens == 0


def test_missing_photo_is_refused_and_the_conversation_goes_on(
    session: Session, photos: list[Path]
) -> None:
    conversation = session.conversation()
    conversation.ask("What is this?", photos[:1], SHORT)
    with pytest.raises(InputError, match="does not exist"):
        conversation.ask("And this?", [photos[1], "missing.png"], SHORT)
    assert len(conversation.ask("Why?", (), SHORT).photos) == 1


def test_single_photo_is_refused_when_it_is_not_in_a_list(
    session: Session, photos: list[Path]
) -> None:
    with pytest.raises(InputError, match=r"images=\[photo\]"):
        session.ask("What is this?", str(photos[0]))


def test_conversation_is_refused_when_another_has_begun(session: Session) -> None:
    first = session.conversation()
    session.conversation()
    with pytest.raises(InputError, match="this conversation has ended"):
        first.ask("hello")


def test_session_is_refused_when_it_is_closed(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, threads=1) as session:
        conversation = session.conversation()
    with pytest.raises(InputError, match="this conversation has ended"):
        conversation.ask("hello")
    with pytest.raises(InputError, match="the session is closed"):
        session.ask("hello")


# Where the model's positions end


@pytest.fixture(scope="module")
def narrow(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A model of 60 positions."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("narrow") / "bundle"))
    manifest = read_manifest(root)
    text = replace(manifest.text, max_positions=60)
    (root / "manifest.json").write_text(dump_manifest(replace(manifest, text=text)))
    with Session.open(root, threads=1) as session:
        yield session


def question_of(session: Session, tokens: int) -> str:
    """A question whose prompt with one photo has so many tokens."""
    for words in range(tokens):
        question = "?" * words
        messages = session.conversation()._transcript.add("user", question, 1).messages
        if len(session.model.writer.draft(messages)) + 15 == tokens:
            return question
    raise AssertionError("no such question")


@pytest.mark.parametrize(("prompt", "answer"), [(58, 3), (59, 2), (60, 1)])
def test_answer_ends_where_the_positions_do(
    narrow: Session, photos: list[Path], prompt: int, answer: int
) -> None:
    found = narrow.ask(question_of(narrow, prompt), photos[:1], GenerationOptions(100))
    assert found.statistics.prompt_tokens == prompt
    assert (len(found.ids), found.finish_reason) == (answer, "context")


def test_prompt_is_refused_with_its_length_when_it_exceeds_the_positions(
    narrow: Session, photos: list[Path]
) -> None:
    question = question_of(narrow, 60) + "?"
    with pytest.raises(InputError, match="the prompt has 61 tokens, 16 of them for 1 image"):
        narrow.ask(question, photos[:1])


def test_conversation_can_be_continued_with_less_when_a_turn_was_too_long(
    narrow: Session, photos: list[Path]
) -> None:
    conversation = narrow.conversation()
    conversation.ask("?", photos[:1], GenerationOptions(1))
    with pytest.raises(InputError, match="model has 60 positions"):
        conversation.ask("?" * 60)
    assert conversation.ask("?", (), GenerationOptions(1)).statistics.reused_tokens >= 16
