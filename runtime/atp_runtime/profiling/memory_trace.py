"""The process's memory while something runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from atp_runtime.profiling.profile_file import MemorySample

_PAUSE = 0.01  # seconds between two looks
_MOST = 400  # samples; a long answer is told as coarsely as its picture needs
_STATUS = Path("/proc/self/statm")


def trace_memory(work: Callable[[], object]) -> tuple[MemorySample, ...]:
    """Runs `work` and looks at the memory meanwhile; nothing where the system does not say."""
    if not _STATUS.is_file():
        work()
        return ()
    samples: list[MemorySample] = []
    done = threading.Event()
    began = perf_counter()

    def watch() -> None:
        while not done.is_set():
            samples.append(MemorySample(perf_counter() - began, _resident()))
            done.wait(_PAUSE)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    step = -(-len(samples) // _MOST)
    return tuple(samples[::step])


def _resident() -> int:
    pages = int(_STATUS.read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
