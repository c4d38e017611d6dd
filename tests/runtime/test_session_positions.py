"""Conversations at the end of the model's positions."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.manifest import dump_manifest, read_manifest
from atp_runtime.session import Session


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
