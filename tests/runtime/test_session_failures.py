"""Answers that are interrupted, that fail or that are refused: the conversation goes on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atp_runtime.conversation import Conversation
from atp_runtime.errors import CheckFailedError, InputError, MachineError
from atp_runtime.generation import GeneratedText, GenerationOptions, generate
from atp_runtime.pruning_point import PruningPoint
from atp_runtime.selection import Selection
from atp_runtime.session import Session

SHORT = GenerationOptions(max_new_tokens=12)


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, threads=1) as opened:
        yield opened


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
