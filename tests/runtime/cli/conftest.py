"""`atp-run` in this process: a command line, or a server with its clients."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.cli.command_line import AtpRun, Outcome
from tests.runtime.cli.listen_server import SHORT, Behave, Brake, Serve, wait_for

from atp_runtime.cli.listen import listen
from atp_runtime.cli.run import main
from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session


@pytest.fixture
def atp_run(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AtpRun:
    """Runs the command in this process, on the tiny bundle unless another is given."""

    def run(*words: object, bundle: Path = tiny_bundle, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main([str(bundle), *map(str, words)])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def asked(tiny_bundle: Path) -> Callable[..., str]:
    """What the Python interface answers, in 8 tokens unless options say otherwise."""

    def ask(
        questions: Sequence[str],
        photos: Sequence[Path] = (),
        options: GenerationOptions | None = None,
        system: str | None = None,
    ) -> list[str]:
        with Session.open(tiny_bundle, threads=1) as session:
            conversation, texts = session.conversation(system), []
            for number, question in enumerate(questions):
                images = photos if number == 0 else ()
                chosen = options or GenerationOptions(8)
                texts.append(conversation.ask(question, images, chosen).text)
        return texts

    return ask


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a server listens."""
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


@pytest.fixture
def brake(session: Session, monkeypatch: pytest.MonkeyPatch) -> Brake:
    return Brake(session, monkeypatch)
