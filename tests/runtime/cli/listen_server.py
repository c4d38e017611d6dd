"""A server of `atp-run --listen`, as tests see it.

It runs in the main thread, as it must for signals, and the clients in another one; each test ends
it with SIGTERM.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.cli.listen_peer import PATIENCE

from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

SHORT = GenerationOptions(8)
Behave = Callable[[Path], Any]
Serve = Callable[..., Any]


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
