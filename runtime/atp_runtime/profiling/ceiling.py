"""What the machine can do at best, measured before a bundle is: matrix products and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from atp_runtime.backends.onnxruntime_session import load_library, session_options
from atp_runtime.profiling.matmul_graph import matmul_graph

_ROWS, _SQUARE = 640, 2048
_LONG = (2048, 16384)  # 128 MiB, more than caches hold
_SECONDS, _LEAST = 0.6, 5


@dataclass(frozen=True)
class Ceiling:
    """The best of several runs.

    Attributes:
        gflops: 1e9 operations per second of a large product.
        gbps: 1e9 bytes per second that weights are read with: the faster of a product of one row
            with 128 MiB, and a copy of as much.
    """

    gflops: float
    gbps: float


def measure_ceiling(threads: int | None) -> Ceiling:
    """The CPU's, by ONNX Runtime with as many threads as the bundle gets.

    Args:
        threads: Of one operator; None is one per physical core.

    Raises:
        MachineError: ONNX Runtime is not installed.
    """
    library = load_library()
    square = np.full((_SQUARE, _SQUARE), 0.5, np.float32)
    product = _best(_product(library, threads, square, _ROWS))
    long = np.full(_LONG, 0.5, np.float32)
    row = _best(_product(library, threads, long, 1))
    target = np.empty_like(long)
    copy = _best(lambda: np.copyto(target, long))
    bandwidth = max(long.nbytes / row, 2 * long.nbytes / copy)
    return Ceiling(2 * _ROWS * _SQUARE**2 / product / 1e9, bandwidth / 1e9)


def _product(
    library: Any, threads: int | None, weight: np.ndarray, rows: int
) -> Callable[[], object]:
    session = library.InferenceSession(
        matmul_graph(weight), session_options(library, threads), providers=["CPUExecutionProvider"]
    )
    feeds = {"x": np.full((rows, len(weight)), 0.5, np.float32)}
    return lambda: session.run(["y"], feeds)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    began = perf_counter()
    taken: list[float] = []
    while len(taken) < _LEAST or perf_counter() - began < _SECONDS:
        start = perf_counter()
        work()
        taken.append(perf_counter() - start)
    return min(taken)
