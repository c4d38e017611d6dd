"""The socket of `atp-run --listen`: who may use it, what it replaces and what it leaves behind."""

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atp_runtime.cli.listen_options import PRIVATE, add_listen_option
from atp_runtime.cli.listen_socket import open_listener
from atp_runtime.errors import InputError


@pytest.fixture
def dead(path: Path) -> Iterator[Path]:
    """The socket of a server that was killed."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    return path


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_socket_has_the_mode_that_was_asked_for(path: Path, mode: int) -> None:
    listener = open_listener(path, mode)
    assert path.stat().st_mode & 0o777 == mode
    assert connects(path)
    listener.close()
    assert list(path.parent.iterdir()) == []


def test_a_dead_socket_is_replaced(dead: Path) -> None:
    assert not connects(dead)
    listener = open_listener(dead, PRIVATE)
    assert connects(dead)
    listener.close()


def test_a_live_server_keeps_its_socket(path: Path) -> None:
    first = open_listener(path, PRIVATE)
    with pytest.raises(InputError, match="a server is listening there"):
        open_listener(path, PRIVATE)
    assert connects(path)
    first.close()


def test_a_file_that_is_no_socket_is_kept(path: Path) -> None:
    path.write_text("something")
    with pytest.raises(InputError, match="there is a file of that name"):
        open_listener(path, PRIVATE)
    assert path.read_text() == "something"


def test_a_socket_of_another_server_is_not_removed(path: Path) -> None:
    first = open_listener(path, PRIVATE)
    path.unlink()
    second = open_listener(path, PRIVATE)
    first.close()
    assert connects(path)
    second.close()


def test_a_socket_that_somebody_removed_can_be_closed(path: Path) -> None:
    listener = open_listener(path, PRIVATE)
    path.unlink()
    listener.close()


@pytest.mark.parametrize("name", ["missing/atp.sock", "a" * 200])
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--listen") as refused:
        open_listener(tmp_path / name, PRIVATE)
    assert "directory that you may write to" in refused.value.fix
    assert list(tmp_path.iterdir()) == []


# systemd

HANDED_OVER = """
import os, socket, sys
from pathlib import Path
from atp_runtime.cli.listen_socket import open_listener
path, kind, count, meant_for = sys.argv[1:]
made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
made.bind(path)
if kind == "listening":
    made.listen()
if made.fileno() != 3:
    os.dup2(made.fileno(), 3)
os.environ.update(LISTEN_PID=meant_for or str(os.getpid()), LISTEN_FDS=count)
listener = open_listener(Path(path + ".own"), 0o600)
print(listener.socket.getsockname(), Path(path + ".own").exists(), "LISTEN_FDS" in os.environ)
listener.close()
print(Path(path).exists())
"""


def hand_over(
    path: Path, kind: str = "listening", count: str = "1", meant_for: str = ""
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", HANDED_OVER, str(path), kind, count, meant_for]
    return subprocess.run(words, check=False, capture_output=True, text=True)


def test_a_socket_of_systemd_is_used_and_left_in_place(path: Path) -> None:
    done = hand_over(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path} False False\nTrue\n"


def test_a_socket_that_was_handed_to_another_program_is_not_used(path: Path) -> None:
    done = hand_over(path, meant_for="1")
    assert done.stdout.startswith(f"{path}.own.")
    assert " True False" in done.stdout


@pytest.mark.parametrize(("kind", "count"), [("listening", "2"), ("silent", "1")])
def test_anything_else_of_systemd_is_refused(path: Path, kind: str, count: str) -> None:
    done = hand_over(path, kind, count)
    assert "not one Unix stream socket" in done.stderr


# Options


def test_the_options_have_private_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_listen_option(parser)
    assert vars(parser.parse_args([])) == {"listen": None, "listen_mode": 0o600}
    asked = parser.parse_args(["--listen", "a.sock", "--listen-mode", "660"])
    assert vars(asked) == {"listen": Path("a.sock"), "listen_mode": 0o660}


@pytest.mark.parametrize("mode", ["rw", "8", "1000", "-1", ""])
def test_what_is_no_mode_is_refused(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_listen_option(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--listen-mode={mode}"])
    assert "is not an octal mode" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, atp_runtime.cli.listen_options\n"
        "assert not {'numpy', 'socket', 'json'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-S", "-c", script], check=True, env=_plain_path())


def _plain_path() -> dict[str, str]:
    import atp_runtime  # noqa: PLC0415

    return {**os.environ, "PYTHONPATH": str(Path(atp_runtime.__file__).parent.parent)}
