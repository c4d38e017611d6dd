"""The socket of `atp-run --listen`: made, or handed over by systemd."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atp_runtime.errors import InputError

_BACKLOG = 64  # clients that may wait before they are accepted
_FIRST_HANDED_OVER = 3  # SD_LISTEN_FDS_START
_PATIENCE = 1  # seconds; a live server's socket accepts at once, unless its backlog is full
_ELSEWHERE = "name a path in a directory that you may write to, such as /run/user/1000/atp.sock."


@dataclass(frozen=True)
class Listener:
    """A socket that listens.

    Attributes:
        socket: It.
        path: Where it was made; None if it was handed over.
        identity: Device and inode of that file.
    """

    socket: socket.socket
    path: Path | None = None
    identity: tuple[int, int] | None = None

    def close(self) -> None:
        """Listens no more, and removes the socket's file, unless another one took its place."""
        self.socket.close()
        if self.path:
            with suppress(FileNotFoundError):
                if _identity(self.path) == self.identity:
                    self.path.unlink()


def open_listener(path: Path, mode: int) -> Listener:
    """Listens on a path, or on the socket that systemd hands over.

    What is listened on has its permissions from the beginning.

    Raises:
        InputError: A server listens there, something else is there, nothing can be made there, or
            what systemd hands over is no such socket.
    """
    inherited = _handed_over()
    if inherited:
        return Listener(inherited)
    _check_free(path)
    # Made under another name and moved, which takes the place of a dead socket, too.
    made = path.with_name(f"{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(made))
        made.chmod(mode)
        listener.listen(_BACKLOG)
        identity = _identity(made)
        made.replace(path)
    except BaseException as error:
        listener.close()
        made.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f"--listen {path}: {error.strerror or error}",
                why="a socket cannot be made there.",
                fix=_ELSEWHERE,
            ) from error
        raise
    return Listener(listener, path, identity)


def _check_free(path: Path) -> None:
    try:
        found = path.lstat()
    except OSError:
        return  # nothing there, or nothing to be made there, which `bind` tells
    if not stat.S_ISSOCK(found.st_mode):
        raise InputError(
            f"--listen {path}: there is a file of that name",
            why="it is no socket, so it is not replaced.",
            fix="remove it, or choose another name.",
        )
    if _is_alive(path):
        raise InputError(
            f"--listen {path}: a server is listening there",
            why="two cannot share a socket.",
            fix="stop the other one, or choose another name.",
        )


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # its backlog is full, or it belongs to somebody else
    return True


def _handed_over() -> socket.socket | None:
    """The socket of a systemd socket unit (`sd_listen_fds(3)`). Not yet run under systemd."""
    meant_for, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    if meant_for != str(os.getpid()):
        return None
    if count == "1":
        inherited = socket.socket(fileno=_FIRST_HANDED_OVER)
        kind = (inherited.family, inherited.type)
        listens = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if kind == (socket.AF_UNIX, socket.SOCK_STREAM) and listens:
            return inherited
    raise InputError(
        f"systemd handed over {count or 'no'} socket(s), not one Unix stream socket",
        why="--listen answers on one.",
        fix="give the socket unit one ListenStream= with a path, and Accept=no.",
    )


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
