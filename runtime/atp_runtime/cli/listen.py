"""`atp-run --listen`: answers questions over a Unix socket until it is stopped.

Clients send one JSON object a line and get one a line. One request runs at a time; the others
wait in the order in which they came.
"""

from __future__ import annotations

import argparse
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from atp_runtime.cli.command import print_note
from atp_runtime.cli.listen_answers import Answerer
from atp_runtime.cli.listen_clients import Clients
from atp_runtime.cli.listen_options import PRIVATE
from atp_runtime.cli.listen_socket import open_listener
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOT_WITH_LISTEN = ("question", "chat", "image", "show_pruning", "stats")


def check_listen(options: argparse.Namespace) -> None:
    """Refuses what belongs to one question where `--listen` answers many.

    Raises:
        InputError: One of those options was given.
    """
    for name in _NOT_WITH_LISTEN:
        if getattr(options, name):
            shown = "a question" if name == "question" else f"--{name.replace('_', '-')}"
            raise InputError(
                f"--listen with {shown}",
                why="questions and photos come over the socket, and answers tell their cost.",
                fix=f"leave {shown} away, or leave --listen away.",
            )


def listen(
    open_session: Callable[[], Session],
    path: Path,
    *,
    mode: int = PRIVATE,
    generation: GenerationOptions | None = None,
    system: str | None = None,
    quiet: bool = False,
) -> int:
    """Answers until SIGTERM or Ctrl-C; must be called in the main thread.

    The socket is there before the bundle is loaded: clients can connect, and wait.

    Args:
        open_session: Loads the bundle.
        path: Where the socket is made. One that systemd hands over is used instead.
        mode: Its permissions.
        generation: How to answer where a request does not say.
        system: The system prompt; None leaves it to the chat template.
        quiet: Do not tell where it listens.

    Returns:
        The exit code: 0, because to be stopped is how serving ends.

    Raises:
        InputError: The socket cannot be made, or the bundle cannot be used.
        CheckFailedError: A file of the bundle was changed.
        MachineError: Memory does not suffice.
    """
    with (
        _until_stopped() as stop,
        closing(open_listener(path, mode)) as listener,
        open_session() as session,
        closing(Clients(listener.socket, stop.wakeup)) as clients,
    ):
        if not quiet:
            print_note(f"listening on {path}; Ctrl-C stops")
        _serve(clients, Answerer(session, generation or GenerationOptions(), system), stop)
    return 0


def _serve(clients: Clients, answerer: Answerer, stop: _Stop) -> None:
    """Answers one request after the other; a signal's exception ends it."""

    def look() -> None:
        stop.check()
        clients.look()

    while True:
        turn = clients.wait()
        document = answerer.answer(turn, look)
        with stop.held_back():  # between the two the client would be told that it waits in vain
            if document is not None:
                turn.client.send(document)
            clients.answered(turn.client)


class _Stop:
    """A handler of signals that ends what runs, once; further signals do not disturb its cleanup.

    Attributes:
        wakeup: Becomes readable when a signal comes: `poll` is not interrupted by one that came a
            moment before it.
    """

    def __init__(self, wakeup: socket.socket) -> None:
        self.wakeup = wakeup
        self._came = False
        self._holds_back = False

    def __call__(self, *_: object) -> None:
        """Handles a signal.

        Raises:
            KeyboardInterrupt: At once, or where `held_back` ends.
        """
        self._came = True
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if not self._holds_back:
            self.check()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Lets the block end before a signal does.

        Raises:
            KeyboardInterrupt: A signal has come.
        """
        self._holds_back = True
        yield
        self._holds_back = False
        self.check()

    def check(self) -> None:
        """Makes sure that no signal has come: Python drops exceptions out of finalisers.

        Raises:
            KeyboardInterrupt: One has.
        """
        if self._came:
            raise KeyboardInterrupt


@contextmanager
def _until_stopped() -> Iterator[_Stop]:
    """Runs the block until a signal comes; then all is as before."""
    wakeup, written = socket.socketpair()
    with wakeup, written:
        written.setblocking(False)
        before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        stop = _Stop(wakeup)
        handlers = {each: signal.signal(each, stop) for each in _SIGNALS}
        try:
            with suppress(KeyboardInterrupt):  # which is how a signal ends the block
                yield stop
        finally:
            for each, handler in handlers.items():
                signal.signal(each, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(before)
