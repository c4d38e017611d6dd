"""`atp-run --listen`: a client's view of the server, and how it starts and stops.

The server runs in the main thread, as it must for signals, and the clients in another one; each
test ends it with SIGTERM.
"""

import os
import select
import signal
import socket
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.cli.listen_peer import PATIENCE, Peer

from atp_runtime.cli import listen_clients
from atp_runtime.cli.listen import _until_stopped, check_listen, listen
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

SHORT = GenerationOptions(8)


Behave = Callable[[Path], Any]
Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "atp.sock"


@pytest.fixture
def serve(session: Session, path: Path) -> Iterator[Serve]:
    """Serves while a client behaves as given, then stops; returns what the client returned."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until the server is there

    def run(behave: Behave, **options: Any) -> Any:
        outcome: list[Any] = []

        def work() -> None:
            try:
                wait_for(path)
                outcome.append(behave(path))
            except BaseException as error:
                outcome.append(error)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            code = listen(lambda: nullcontext(session), path, **{"generation": SHORT, **options})
        finally:
            thread.join()
        assert code == 0
        assert not path.exists()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    yield run
    signal.signal(signal.SIGTERM, before)


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)


class Brake:
    """Holds the server before each token of an answer until it is released."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        self.tokens = 0
        context = session.model.context
        feed = context.feed

        def held(token: int) -> Any:
            self.tokens += 1
            self.begun.set()
            self.released.wait(PATIENCE)
            return feed(token)

        monkeypatch.setattr(context, "feed", held)


@pytest.fixture
def brake(session: Session, monkeypatch: pytest.MonkeyPatch) -> Brake:
    return Brake(session, monkeypatch)


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


# Several clients


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


# Starting and stopping


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
