"""`atp-run --listen` with several clients, some of which go away."""

import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.cli.listen_peer import PATIENCE, Peer
from tests.runtime.cli.listen_server import Brake, Serve

from atp_runtime.cli import listen_clients


def when_let_in(path: Path) -> dict[str, Any]:
    """The answer to the first client that is not one too many."""
    while True:
        # Who is one too many may have been hung up on before it spoke.
        with suppress(BrokenPipeError, ConnectionResetError):
            answer = Peer(path).ask("What?")
            if "error" not in answer:
                return answer
        time.sleep(0.01)


def test_one_client_too_many_is_told_so(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_clients, "_MAX_CLIENTS", 1)

    def behave(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        one = Peer(path)
        first = one.ask("What?")
        refused = Peer(path).read()
        one.close()
        return first, refused, when_let_in(path)

    first, refused, again = serve(behave)
    assert "text" in first
    assert refused["error"]["what"] == "1 clients are connected"
    assert "text" in again


def test_requests_are_answered_in_the_order_in_which_they_came(serve: Serve, brake: Brake) -> None:
    def behave(path: Path) -> list[dict[str, Any]]:
        one, two, three = (Peer(path) for _ in range(3))
        one.send(question="One?", max_new_tokens=2)
        one.send(question="One again?", max_new_tokens=2)
        assert brake.begun.wait(PATIENCE)
        two.send(question="Two?", max_new_tokens=2)
        three.send(question="Three?", max_new_tokens=2)
        assert not any(peer.has_answer(0) for peer in (one, two, three))
        brake.released.set()
        assert three.has_answer(PATIENCE)
        assert two.has_answer(0)
        return [one.read(), two.read(), three.read(), one.read()]

    one, two, three, again = serve(behave)
    assert two["waited_ms"] > 0
    assert three["waited_ms"] > two["total_ms"]
    assert "text" in one
    # Its second request was taken in when the first was answered: behind the other two.
    assert again["waited_ms"] >= three["total_ms"]


def test_a_client_that_hangs_up_frees_the_server(serve: Serve, brake: Brake) -> None:
    def behave(path: Path) -> dict[str, Any]:
        peer = Peer(path)
        peer.send(question="What?", max_new_tokens=100)
        assert brake.begun.wait(PATIENCE)
        peer.close()
        brake.released.set()
        return Peer(path).ask("What?", max_new_tokens=2)

    assert "text" in serve(behave)
    # The rest of its answer, and of a character that takes several tokens, is not made.
    assert brake.tokens < 20


def test_a_client_that_hangs_up_while_it_waits_is_not_answered(serve: Serve, brake: Brake) -> None:
    def behave(path: Path) -> dict[str, Any]:
        one, two = Peer(path), Peer(path)
        one.send(question="One?", max_new_tokens=2)
        assert brake.begun.wait(PATIENCE)
        two.send(question="Two?", max_new_tokens=50)
        two.close()
        brake.released.set()
        return one.read()

    assert "text" in serve(behave)
    assert brake.tokens < 20


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_clients, "_PATIENCE", 0.05)
    ours, theirs = socket.socketpair()
    client = listen_clients.Client(ours)
    client.send({"text": "a" * (1 << 24)})
    assert client.gone
    client.send({"text": "nobody gets this"})
    client.close()
    theirs.close()
