"""Who is connected to `atp-run --listen`, and whose turn it is.

There is one thread: while a question is answered, `look` is called between its tokens, and takes in
what comes meanwhile. A client has one request waiting at most; what it sends beyond that stays in
the system's buffers, so no client can fill this program's memory or overtake another.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from atp_runtime.cli.command import InterruptedWorkError, error_document
from atp_runtime.errors import AtpError, InputError

MAX_LINE = 1 << 20
"""Longest request, in bytes."""

_MAX_CLIENTS = 64
_CHUNK = 1 << 16
_PATIENCE = 10  # seconds that a client may leave its answer unread
_HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Client:
    """A connection.

    Args:
        connection: Its socket, which the client owns.

    Attributes:
        gone: Whether it has hung up; what is sent to it then is dropped.
        asked: Whether it has begun a conversation.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE)
        self._connection = connection
        self._received = bytearray()
        self._ended = False
        self.gone = False
        self.asked = False

    def fileno(self) -> int:
        """Its number for `poll`."""
        return self._connection.fileno()

    def receive(self) -> None:
        """Takes in what has come."""
        try:
            chunk = self._connection.recv(_CHUNK)
        except OSError:
            self.gone = True
            return
        self._received += chunk
        self._ended = not chunk

    def next_line(self) -> bytes | None:
        """The next request, without its line's end; None if it is not complete yet.

        Empty lines are none; the last line needs no end.

        Raises:
            InputError: It is longer than `MAX_LINE`.
        """
        while True:
            line, end, rest = self._received.partition(b"\n")
            if len(line) > MAX_LINE:
                raise InputError(
                    f"request: more than {MAX_LINE} bytes without the end of a line",
                    why="a request is one line.",
                    fix="send photos as paths, and a line's end behind each request.",
                )
            if not end and not self._ended:
                return None
            self._received = rest
            if line.strip():
                return bytes(line)
            if not end:
                return None

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to do for it."""
        return self.gone or (self._ended and not self._received)

    def send(self, document: dict[str, Any]) -> None:
        """Sends a document as one line. Who does not read for too long is taken for gone."""
        if self.gone:
            return
        try:
            self._connection.sendall(json.dumps(document).encode() + b"\n")
        except OSError:
            self.gone = True

    def close(self) -> None:
        """Hangs up."""
        self.gone = True
        self._connection.close()


@dataclass(frozen=True)
class Turn:
    """A request that waits, or is being answered.

    Attributes:
        client: Whose it is.
        line: The request.
        arrived: When it came, in seconds of `time.perf_counter`.
    """

    client: Client
    line: bytes
    arrived: float


class Clients:
    """All connections to a socket that listens, and their requests in order.

    Args:
        listener: The socket.
        wakeup: Waiting ends when this one has something to read; nothing is read from it.
    """

    def __init__(self, listener: socket.socket, wakeup: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._clients: dict[int, Client] = {}
        self._waiting: deque[Turn] = deque()
        self._answering: Turn | None = None
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._wakeup = wakeup.fileno()
        self._poll.register(wakeup, select.POLLIN)

    def wait(self) -> Turn:
        """The next request; waits until there is one."""
        while True:
            while not self._waiting:
                self._take(None)
            self._answering = self._waiting.popleft()
            if not self._answering.client.gone:
                return self._answering

    def look(self) -> None:
        """Takes in who came, what they asked and who went, without waiting."""
        self._take(0)

    def answered(self, client: Client) -> None:
        """Listens to a client again, whose request is answered."""
        self._answering = None
        if client.gone:
            self._drop(client)
        else:
            self._next_request(client)

    def close(self) -> None:
        """Tells those who wait that they wait in vain, and hangs up."""
        self._poll.unregister(self._wakeup)
        while self._take(0):  # who asked before this is told, too
            pass
        unanswered = [*([self._answering] if self._answering else ()), *self._waiting]
        for turn in unanswered:
            turn.client.send(_failure(_stopped()))
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _take(self, timeout: int | None) -> bool:
        """Takes in what happens within a time; whether there was anything."""
        happened = self._poll.poll(timeout)
        for number, events in happened:
            client = self._clients.get(number)
            if number == self._wakeup:
                continue
            if client is None:
                self._accept()
            elif events & _HUNG_UP:
                self._drop(client)
            else:
                client.receive()
                self._next_request(client)
        return bool(happened)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it went again
        client = Client(connection)
        if len(self._clients) >= _MAX_CLIENTS:
            client.send(_failure(_too_many()))
            client.close()
            return
        self._clients[client.fileno()] = client
        self._poll.register(client, select.POLLIN)

    def _next_request(self, client: Client) -> None:
        try:
            line = None if client.finished else client.next_line()
        except InputError as error:
            client.send(_failure(error))
            client.gone = True
            line = None
        if line is not None:
            self._waiting.append(Turn(client, line, time.perf_counter()))
            self._poll.modify(client, 0)  # that it hangs up is told all the same
        elif client.finished:
            self._drop(client)
        else:
            self._poll.modify(client, select.POLLIN)

    def _drop(self, client: Client) -> None:
        if self._clients.pop(client.fileno(), None):
            self._poll.unregister(client)
        client.close()


def _failure(error: AtpError) -> dict[str, Any]:
    return {"error": error_document(error)}


def _too_many() -> InputError:
    return InputError(
        f"{_MAX_CLIENTS} clients are connected",
        why="more are not served.",
        fix="hang up connections that are not used.",
    )


def _stopped() -> InterruptedWorkError:
    return InterruptedWorkError(
        "the server was stopped", why="the question is not answered.", fix="ask again later."
    )
