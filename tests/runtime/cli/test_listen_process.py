"""`atp-run BUNDLE --listen SOCKET` in a process of its own, from its start to its end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.cli.listen_peer import PATIENCE, Peer

from atp_runtime.generation import GenerationOptions
from atp_runtime.session import Session

TOKENS = 4


@pytest.fixture
def server(tiny_bundle: Path, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server that has loaded its bundle."""
    words = [str(tiny_bundle), "--listen", str(path), "--max-new-tokens", str(TOKENS)]
    process = subprocess.Popen(
        [sys.executable, "-m", "atp_runtime.cli.run", *words, "--threads", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(it for it in sys.path if it)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        assert process.stderr.readline() == f"listening on {path}; Ctrl-C stops\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_server_answers_its_clients_until_it_is_stopped(
    server: subprocess.Popen[str], tiny_bundle: Path, path: Path, photos: list[Path]
) -> None:
    one, two = Peer(path), Peer(path)
    first = one.ask("What is this?", images=[str(photos[0])])
    one.write(b"What is this?\n")
    refused, answered = one.read(), one.ask("And now?")
    second = two.ask("Why?")

    server.send_signal(signal.SIGTERM)
    out, err = server.communicate(timeout=PATIENCE)

    assert (server.returncode, out, err) == (0, "", "")
    assert not path.exists()
    assert one.at_end()
    assert refused["error"]["what"].startswith("request: ")
    assert refused["error"]["exit_code"] == 2
    options = GenerationOptions(TOKENS)
    with Session.open(tiny_bundle, threads=1) as session:
        assert first["text"] == session.ask("What is this?", photos[:1], options).text
        assert second["text"] == session.ask("Why?", (), options).text
        assert answered["text"] == session.ask("And now?", (), options).text
