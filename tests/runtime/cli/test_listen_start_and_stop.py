"""How `atp-run --listen` starts and stops."""

import os
import select
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.cli.listen_peer import PATIENCE, Peer
from tests.runtime.cli.listen_server import Brake, Serve

from atp_runtime.cli import listen_clients
from atp_runtime.cli.listen import _until_stopped, check_listen, listen
from atp_runtime.errors import InputError
from atp_runtime.session import Session


def test_the_socket_is_there_before_the_bundle_is_loaded(path: Path) -> None:
    def opened() -> Session:
        assert path.is_socket()
        raise InputError("the bundle", why="it is another test.", fix="none.")

    with pytest.raises(InputError, match="the bundle"):
        listen(opened, path)
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_those_who_wait_are_told_when_the_server_is_stopped(
    serve: Serve, brake: Brake, number: signal.Signals
) -> None:
    def behave(path: Path) -> list[dict[str, Any]]:
        one, two = Peer(path), Peer(path)
        one.send(question="One?")
        assert brake.begun.wait(PATIENCE)
        two.send(question="Two?")
        os.kill(os.getpid(), number)
        brake.released.set()
        return [one.read(), two.read()]

    for stopped in serve(behave):
        assert stopped["error"]["what"] == "the server was stopped"
        assert stopped["error"]["exit_code"] == 130


def test_who_has_its_answer_is_told_nothing_more_when_the_server_is_stopped(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = listen_clients.Clients.answered

    def stopped_before(clients: listen_clients.Clients, client: listen_clients.Client) -> None:
        signal.raise_signal(signal.SIGTERM)
        answered(clients, client)

    monkeypatch.setattr(listen_clients.Clients, "answered", stopped_before)

    def behave(path: Path) -> tuple[dict[str, Any], bool]:
        peer = Peer(path)
        return peer.ask("What?"), peer.at_end()

    answer, hung_up = serve(behave)
    assert "text" in answer
    assert hung_up


def test_the_handlers_of_signals_are_those_of_before(serve: Serve) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    serve(lambda path: Peer(path).ask("What?"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_is_not_forgotten_where_its_exception_was_dropped() -> None:
    with _until_stopped() as stop:
        stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            stop.check()
        assert select.select([stop.wakeup], [], [], 0)[0]
        signal.raise_signal(signal.SIGTERM)  # does not disturb the end


def test_where_it_listens_is_told_unless_it_is_to_be_quiet(
    serve: Serve, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(lambda path: None)
    assert f"listening on {path}" in capsys.readouterr().err
    serve(lambda path: None, quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("question", "What?", "a question"),
        ("chat", True, "--chat"),
        ("image", ["a.png"], "--image"),
        ("show_pruning", Path("a.png"), "--show-pruning"),
        ("stats", True, "--stats"),
    ],
)
def test_options_of_a_single_question_are_refused(option: str, value: object, shown: str) -> None:
    nothing = {"question": None, "chat": False, "image": [], "show_pruning": None, "stats": False}
    check_listen(Namespace(**nothing))
    with pytest.raises(InputError, match=f"--listen with {shown}"):
        check_listen(Namespace(**{**nothing, option: value}))
