"""What Python adds to the stages: time between their runs, per token and per prompt."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from atp_runtime.backends import LoadedStage
from atp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from atp_runtime.bundle import Bundle
from atp_runtime.context import ImageFeatures
from atp_runtime.conversation import Model
from atp_runtime.generation import GenerationOptions, generate
from atp_runtime.image_tokens import ImageTokens, Places
from atp_runtime.manifest import Stage
from atp_runtime.session import Session

TEXT_TOKENS = 64
_TEXT_TOKEN = 65  # any that is not the image's


@dataclass(frozen=True)
class Overhead:
    """Median seconds of Python, for a token or for a prompt.

    Attributes:
        count: How many were timed.
        between_runs: Outside of the backend's runs of stages.
        with_binding: Outside of ONNX Runtime itself: telling it where inputs and outputs are
            counts, too.
    """

    count: int
    between_runs: float
    with_binding: float


class Stopwatch:
    """Remembers when a function ran."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched."""

        def run(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            self._spans.append((begin, time.perf_counter()))
            return result

        return run

    def outside(self, begin: float, end: float) -> float:
        """Seconds between two moments in which it did not run."""
        inside = sum(last - first for first, last in self._spans if begin <= first < end)
        return end - begin - inside


class WatchedBackend(OnnxRuntimeBackend):
    """ONNX Runtime, with a stopwatch on the runs of its stages."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads=threads)
        self.runs = Stopwatch()

    def load(self, bundle: Bundle, stage: Stage) -> LoadedStage:
        """A stage whose runs are timed."""
        loaded = super().load(bundle, stage)
        loaded.run = self.runs.timed(loaded.run)  # type: ignore[method-assign]
        return loaded


def measure_overhead(
    path: Path, *, threads: int, steps: int, prompts: int
) -> tuple[Overhead, Overhead]:
    """Asks about an image, prunes by the bundle's own rule, and answers greedily.

    A token's time is what a user waits for: the embedding's row, the segments, the head, picking,
    detokenising. A prompt's is splicing image features in, the segments and the selections; the
    tower is not run.

    Args:
        path: The bundle.
        threads: Of ONNX Runtime.
        steps: Decode steps to time.
        prompts: Prefills to time, after one to warm up.

    Returns:
        A token's and a prompt's.

    Raises:
        RuntimeError: The answer ended before all steps.
    """
    backend = WatchedBackend(threads)
    with _watched_library() as library, Session(Bundle.open(path), backend) as session:
        model, watches = session.model, (backend.runs, library)
        prefills = [_prefill(model, steps) for _ in range(prompts + 1)][1:]
        options = GenerationOptions(max_new_tokens=steps + 1)
        answer = generate(prefills[-1].logits, model.context, model.tokenizer, options)
        if len(answer.ids) <= steps:
            raise RuntimeError(f"the answer ended after {len(answer.ids)} of {steps + 1} tokens")
        tokens = list(zip(answer.seconds, answer.seconds[1:], strict=False))
        return _median(tokens, watches), _median([it.span for it in prefills], watches)


@dataclass(frozen=True, eq=False)
class _Prefilled:
    span: tuple[float, float]
    logits: npt.NDArray[np.float32]


def _prefill(model: Model, new_tokens: int) -> _Prefilled:
    """Runs a prompt of an image and text from its beginning."""
    vision = model.manifest.vision
    shape = vision.tokens, model.manifest.text.hidden
    values = 0.02 * np.random.default_rng(0).standard_normal(shape)
    features = values.astype(model.manifest.embedding.dtype)
    image = ImageFeatures(0, ImageTokens(features, Places.whole(vision)))
    ids = [_TEXT_TOKEN] * (TEXT_TOKENS // 2)
    ids = [*ids, *[vision.image_token_id] * vision.tokens, *ids]
    # A rule that prunes starts a conversation afresh, so that nothing is left to reuse.
    model.context.restart()
    begin = time.perf_counter()
    prefill = model.context.prefill(ids, [image], model.select, max_new_tokens=new_tokens + 1)
    return _Prefilled((begin, time.perf_counter()), prefill.result.logits)


def _median(spans: Sequence[tuple[float, float]], watches: tuple[Stopwatch, Stopwatch]) -> Overhead:
    between, binding = (
        statistics.median(watch.outside(begin, end) for begin, end in spans) for watch in watches
    )
    return Overhead(len(spans), between, binding)


@contextmanager
def _watched_library() -> Iterator[Stopwatch]:
    """Every run of any session of ONNX Runtime is timed inside the block."""
    watch, original = Stopwatch(), onnxruntime.InferenceSession.run_with_iobinding
    onnxruntime.InferenceSession.run_with_iobinding = watch.timed(original)
    try:
        yield watch
    finally:
        onnxruntime.InferenceSession.run_with_iobinding = original
