"""`atp-run --listen`: its options. Nothing is imported for them, so that `--help` is instant."""

from __future__ import annotations

import argparse
from pathlib import Path

PRIVATE = 0o600
"""Mode of a socket that its owner alone may use."""


def add_listen_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--listen` and `--listen-mode`."""
    group = parser.add_argument_group("answering over a socket")
    group.add_argument(
        "--listen",
        type=Path,
        metavar="SOCKET",
        help="load the bundle once and answer questions over this Unix socket, as JSON lines, "
        "until stopped; see docs/jetson.md",
    )
    group.add_argument(
        "--listen-mode",
        type=_mode,
        default=PRIVATE,
        metavar="MODE",
        help="permissions of the socket, in octal (default: 600, its owner alone)",
    )


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        message = f"{text!r} is not an octal mode such as 600 or 660"
        raise argparse.ArgumentTypeError(message)
    return mode
