"""A client of `atp-run --listen`."""

import json
import select
import socket
from pathlib import Path
from typing import Any

PATIENCE = 60  # seconds; nothing takes that long


class Peer:
    """One connection."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(PATIENCE)
        self.connection.connect(str(path))
        self._lines = self.connection.makefile("rb")

    def ask(self, question: str, **request: Any) -> dict[str, Any]:
        self.send(question=question, **request)
        return self.read()

    def send(self, **request: Any) -> None:
        self.write(json.dumps(request).encode() + b"\n")

    def write(self, data: bytes) -> None:
        self.connection.sendall(data)

    def read(self) -> dict[str, Any]:
        return json.loads(self._lines.readline())

    def at_end(self) -> bool:
        return self._lines.read() == b""

    def end(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._lines.close()
        self.connection.close()

    def has_answer(self, seconds: float) -> bool:
        return bool(select.select([self.connection], [], [], seconds)[0])
