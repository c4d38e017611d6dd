"""Whole sessions: TensorRT on host memory answers what ONNX Runtime answers."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.backends.host_device import HostDevice
from tests.runtime.backends.host_engines import HostLibrary, host_backend, write_engines

from atp_runtime.answer import Answer
from atp_runtime.backends import Traffic
from atp_runtime.backends.base import ALIGNMENT
from atp_runtime.backends.tensorrt import TensorRtBackend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

SHORT = GenerationOptions(max_new_tokens=10)


@pytest.fixture(scope="module", params=[False, True], ids=["own memory", "shared memory"])
def session(request: pytest.FixtureRequest, built_tiny: Path) -> Iterator[Session]:
    backend = host_backend(integrated=request.param)
    with Session(Bundle.open(built_tiny), backend) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, threads=1) as opened:
        yield opened


def assert_same(found: Answer, wanted: Answer) -> None:
    assert (found.text, found.ids) == (wanted.text, wanted.ids)
    assert found.finish_reason == wanted.finish_reason
    assert [it.kept.tolist() for it in found.points] == [it.kept.tolist() for it in wanted.points]
    assert len(found.points) == len(wanted.points)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_answers_and_kept_tokens_are_those_of_onnx_runtime(
    session: Session, reference: Session, photos: list[Path], images: int
) -> None:
    asked = "What is this?", photos[:images], SHORT
    assert_same(session.ask(*asked), reference.ask(*asked))


def test_conversations_go_on_as_with_onnx_runtime(
    session: Session, reference: Session, photos: list[Path]
) -> None:
    chats = session.conversation("Be brief."), reference.conversation("Be brief.")
    turns = [("What?", photos[:1]), ("And now?", ()), ("Compare.", photos[1:3]), ("Why?", ())]
    for question, images in turns:
        assert_same(*(chat.ask(question, images, SHORT) for chat in chats))


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(
    session: Session, reference: Session, photos: list[Path]
) -> None:
    chats = session.conversation(), reference.conversation()
    for chat in chats:
        chat.ask("What?", photos[:1], SHORT)
    with pytest.raises(InputError, match="positions"):
        chats[0].ask("long " * 5000)
    assert_same(*(chat.ask("Why?", photos[1:2], SHORT) for chat in chats))


def test_a_token_costs_one_row_each_way_and_the_host_waits_once(
    built_tiny: Path, photos: list[Path]
) -> None:
    """The answers differ by one token, so the traffic differs by what that token costs."""
    device = HostDevice()
    backend = TensorRtBackend(device, HostLibrary())
    spent = []
    with Session(Bundle.open(built_tiny), backend) as session:
        text, segments = session.model.manifest.text, len(session.model.manifest.segments)
        for tokens in (5, 5, 6):
            before, waited = replace(backend.traffic), device.counts["synchronise"]
            answer = session.ask("What?", photos[:1], GenerationOptions(tokens))
            assert len(answer.ids) == tokens
            then, now = vars(before), vars(backend.traffic)
            spent.append({name: now[name] - then[name] for name in now})
            assert device.counts["synchronise"] - waited == spent[-1]["synchronisations"]
        points = len(answer.points)
    token = {name: spent[2][name] - spent[1][name] for name in spent[0]}
    row, numbers, logits = text.hidden * 4, (1 + segments) * ALIGNMENT, text.vocabulary * 4
    assert Traffic(**token) == Traffic(row + numbers, logits, segments + 1, 1, segments + 1)
    image, prompt = 1, points + 1
    assert spent[1]["synchronisations"] == image + prompt + 4


def test_answer_ends_when_the_engines_admit_no_longer_past(
    built_tiny: Path, reference: Session, photos: list[Path], tmp_path: Path
) -> None:
    whole = reference.ask("What?", photos[:1], GenerationOptions(40))
    prompt = whole.statistics.prompt_tokens
    root = Path(shutil.copytree(built_tiny, tmp_path / "bundle"))
    write_engines(root, longest=prompt + 4)
    with Session(Bundle.open(root), host_backend()) as session:
        answer = session.ask("What?", photos[:1], GenerationOptions(40))
    assert answer.finish_reason == "context"
    assert answer.ids == whole.ids[:6]
