"""From the start of a process to its first token, and its peak memory.

`python -m tests.benchmarks.load read BUNDLE` reads all weights once; `text` and `photo` open the
bundle and make one token, with weights `packed`, or where their files are `mapped`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

_BLOCK = 1 << 24


@dataclass(frozen=True)
class Load:
    """A finished child.

    Attributes:
        seconds: Wall time to the first token, or to the last byte.
        cpu: Seconds of all its threads.
        peak: Highest resident bytes.
        owned: Of what is resident at the end, bytes that no file backs.
    """

    seconds: float
    cpu: float
    peak: int
    owned: int


def measure_load(bundle: Path, *words: str, cold: bool) -> Load:
    """Runs a child.

    Args:
        bundle: Its bundle.
        words: What it does.
        cold: Whether the files are dropped from the page cache first.
    """
    if cold:
        drop_from_page_cache(bundle)
    command = [sys.executable, "-m", "tests.benchmarks.load", words[0], str(bundle), *words[1:]]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Load(**json.loads(done.stdout))


def drop_from_page_cache(bundle: Path) -> None:
    """As far as no process maps them; no rights are needed for that."""
    for path in (bundle / "onnx").iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(bundle: Path) -> None:
    block = bytearray(_BLOCK)
    for path in sorted((bundle / "onnx").glob("*.data")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def _answer(bundle: Path, *, photo: bool, packed: bool) -> object:
    """Returns the session, loaded."""
    from PIL import Image  # noqa: PLC0415 - all of it is part of what is measured

    from atp_runtime.generation import GenerationOptions  # noqa: PLC0415
    from atp_runtime.session import Session  # noqa: PLC0415

    images = [Image.effect_noise((336, 336), 80).convert("RGB")] if photo else []
    session = Session.open(bundle, threads=os.cpu_count(), packed=packed)
    session.ask("What is this?", images, GenerationOptions(max_new_tokens=1))
    return session


def _main() -> None:
    began, session = perf_counter(), None
    what, bundle = sys.argv[1], Path(sys.argv[2])
    if what == "read":
        _read(bundle)
    else:
        session = _answer(bundle, photo=what == "photo", packed=sys.argv[3] == "packed")
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    memory = {line[0]: int(line[1]) << 10 for line in lines if line[-1] == "kB"}
    load = Load(perf_counter() - began, process_time(), memory["VmHWM:"], memory["RssAnon:"])
    print(json.dumps(vars(load)), flush=True)
    del session  # kept up to here: unloading is not part of it


if __name__ == "__main__":
    _main()
