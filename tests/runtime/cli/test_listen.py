"""`atp-run --listen`: a client's view of the server."""

from pathlib import Path
from typing import Any

import pytest
from tests.runtime.cli.listen_peer import Peer
from tests.runtime.cli.listen_server import SHORT, Serve

from atp_runtime.cli import listen_clients
from atp_runtime.session import Session

# Answers


def test_the_answer_and_its_cost_are_those_of_the_session(
    serve: Serve, session: Session, photos: list[Path]
) -> None:
    expected = session.ask("What is this?", photos[:1], SHORT)
    got = serve(lambda path: Peer(path).ask("What is this?", images=[str(photos[0])]))
    assert got["text"] == expected.text
    assert got["finish_reason"] == expected.finish_reason
    kept = [point.kept for point in expected.statistics.points]
    assert [point["kept"] for point in got["points"]] == kept
    assert [point["before_layer"] for point in got["points"]] == [1, 2, 3]
    assert (got["visual_tokens"], got["answer_tokens"]) == (16, 8)
    assert got["notice"].startswith("The pruning modules are untrained")
    assert 0 < got["first_token_ms"] <= got["total_ms"]
    assert got["waited_ms"] >= 0


def test_a_request_may_say_how_long_its_answer_may_be(serve: Serve) -> None:
    got = serve(lambda path: Peer(path).ask("What?", max_new_tokens=3))
    assert got["answer_tokens"] == 3


def test_the_servers_system_prompt_holds_for_all(serve: Serve, session: Session) -> None:
    expected = session.conversation("Be brief.").ask("What?", (), SHORT).text
    assert expected != session.ask("What?", (), SHORT).text
    assert serve(lambda path: Peer(path).ask("What?"), system="Be brief.")["text"] == expected


def test_pieces_of_a_streamed_answer_are_the_answer(serve: Serve, photos: list[Path]) -> None:
    def behave(path: Path) -> list[dict[str, Any]]:
        peer = Peer(path)
        peer.send(question="What?", images=[str(photos[0])], stream=True)
        lines = [peer.read()]
        while "delta" in lines[-1]:
            lines.append(peer.read())
        return lines

    *pieces, whole = serve(behave)
    assert len(pieces) > 1
    assert "".join(piece["delta"] for piece in pieces) == whole["text"]


def test_a_client_that_sends_no_more_still_gets_its_answers(serve: Serve) -> None:
    def behave(path: Path) -> tuple[dict[str, Any], dict[str, Any], bool]:
        peer = Peer(path)
        peer.write(b'\n{"question": "One?"}\r\n\n{"question": "Two?"}')
        peer.end()
        return peer.read(), peer.read(), peer.at_end()

    one, two, ended = serve(behave)
    assert "text" in one
    assert "text" in two
    assert ended


# Conversations


def test_a_conversation_goes_on_where_it_is_asked_to(
    serve: Serve, session: Session, photos: list[Path]
) -> None:
    def behave(path: Path) -> list[dict[str, Any]]:
        peer = Peer(path)
        first = peer.ask("What is this?", images=[str(photos[0])], conversation=True)
        return [first, peer.ask("And now?", conversation=True), peer.ask("And now?")]

    first, second, afresh = serve(behave)
    conversation = session.conversation()
    assert first["text"] == conversation.ask("What is this?", photos[:1], SHORT).text
    expected = conversation.ask("And now?", (), SHORT)
    assert second["text"] == expected.text
    assert second["prompt_tokens"] == expected.statistics.prompt_tokens
    assert afresh["text"] == session.ask("And now?", (), SHORT).text


def test_a_conversation_that_another_client_ended_is_refused_and_a_new_one_is_not(
    serve: Serve,
) -> None:
    def behave(path: Path) -> list[dict[str, Any]]:
        one, two = Peer(path), Peer(path)
        one.ask("What?")
        two.ask("What?")
        return [one.ask("And?", conversation=True), one.ask("And?"), two.ask("And?")]

    lost, new, other = serve(behave)
    assert "another client has asked since" in lost["error"]["why"]
    assert "text" in new
    assert "text" in other


# Errors


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"What is this?", "request: "),
        (b"\xff\xfe\xfa", "request: "),
        (b"[1]", "request: "),
        (b'{"images": []}', "field 'question' is missing"),
        (b'{"question": "What?", "picture": "a.png"}', "unknown field 'picture'"),
        (b'{"question": "What?", "images": "/a.png"}', "images"),
        (b'{"question": 5}', "question"),
        (b'{"question": " "}', "the question is empty"),
        (b'{"question": "\\ud800"}', ""),
        (b'{"question": "What?", "images": ["photo.png"]}', "relative path"),
        (b'{"question": "What?", "images": ["/no/such.png"]}', "does not exist"),
        (b'{"question": "What?", "images": ["/a\\u0000b"]}', "cannot be opened"),
        (b'{"question": "What?", "max_new_tokens": 0}', "max_new_tokens is 0"),
        (b"[" * 100_000, "request: "),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why_and_the_next_one_is(
    serve: Serve, line: bytes, what: str
) -> None:
    def behave(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        peer = Peer(path)
        peer.write(line + b"\n")
        return peer.read(), peer.ask("What?")

    refused, answered = serve(behave)
    assert what in refused["error"]["what"]
    assert refused["error"]["exit_code"] == 2
    assert refused["error"]["why"]
    assert refused["error"]["fix"]
    assert "text" in answered


def test_a_line_without_end_is_refused_and_its_client_hung_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen_clients, "MAX_LINE", 1000)

    def behave(path: Path) -> tuple[dict[str, Any], bool, dict[str, Any]]:
        peer = Peer(path)
        peer.write(b" " * 1001)
        return peer.read(), peer.at_end(), Peer(path).ask("What?")

    refused, ended, answered = serve(behave)
    assert "more than 1000 bytes" in refused["error"]["what"]
    assert ended
    assert "text" in answered


def test_memory_that_runs_out_is_the_machines_error(
    serve: Serve, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    def behave(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        peer = Peer(path)
        with monkeypatch.context() as patched:
            patched.setattr(session.model.context, "prefill", full)
            refused = peer.ask("What?")
        return refused, peer.ask("What?")

    refused, answered = serve(behave)
    assert refused["error"]["exit_code"] == 3
    assert "text" in answered
