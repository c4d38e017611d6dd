"""The machine as the doctor's probes see it: files below a root, programs, packages, the GPU.

Tests give it a made-up root, with the files of a Jetson in it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from atp_export.doctor.gpu import Gpu, find_gpu

_PATIENCE = 10  # seconds; what is asked answers at once or hangs


def run_program(*words: str) -> str:
    """What a program prints on standard output.

    Raises:
        OSError: It is not there, fails or does not end.
    """
    command = " ".join(words)
    try:
        done = subprocess.run(  # noqa: S603 - the probes' own words
            words, check=False, capture_output=True, text=True, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command} did not answer within {_PATIENCE} s") from error
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise OSError(f"{command}: {said}")
    return done.stdout


def package_version(name: str) -> str | None:
    """The version of an installed Python distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class System:
    """A machine.

    Attributes:
        root: Where its file system begins.
        run: Runs a program, as `run_program` does.
        version: Of an installed Python distribution, as `package_version` has it.
        gpu: Finds the GPU, as `find_gpu` does.
    """

    root: Path = Path("/")
    run: Callable[..., str] = run_program
    version: Callable[[str], str | None] = package_version
    gpu: Callable[[], Gpu] = find_gpu

    def text(self, name: str) -> str:
        """A file's text; the device tree ends it with a zero byte.

        Args:
            name: Its path, relative to the root.

        Raises:
            OSError: It cannot be read.
        """
        return (self.root / name).read_text(encoding="utf-8", errors="replace").strip("\0 \n")

    def number(self, name: str) -> int:
        """The whole number that a file holds.

        Raises:
            OSError: It cannot be read.
            ValueError: It holds something else.
        """
        return int(self.text(name))

    def found(self, pattern: str) -> list[Path]:
        """Files that fit a pattern, relative to the root, in alphabetical order."""
        return sorted(self.root.glob(pattern))

    @property
    def is_jetson(self) -> bool:
        """Whether it has one of NVIDIA's Tegra chips."""
        try:
            return "nvidia,tegra" in self.text("proc/device-tree/compatible")
        except OSError:
            return False
