"""What deciding costs: the scorers' nodes in the graphs, and the rules on the host."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np
from tests.benchmarks.decoding import TEXT_TOKENS, THREADS, BundleRunner

from atp_runtime.backends import onnxruntime as backend_module
from atp_runtime.backends import open_backend
from atp_runtime.chunk import Chunk
from atp_runtime.image_tokens import Places
from atp_runtime.selection import Selection, Selectors
from atp_runtime.tensor_names import (
    CLASS_ATTENTION,
    CLASS_SIMILARITY,
    KEYS,
    MEAN_KEYS,
    PATCH_FEATURES,
)
from atp_runtime.vision_stages import VisionStages

_SCORERS = tuple(f"{it}/" for it in ("scorer", CLASS_ATTENTION, CLASS_SIMILARITY, KEYS, MEAN_KEYS))
"""How names of nodes begin that only pruning needs."""


@dataclass(frozen=True)
class ScoringCost:
    """Of one image and its prompt, seconds: the least of some rounds, as other work only adds.

    Attributes:
        graphs: In the scorers' nodes, of all stages.
        host: In the rules, what they download included.
    """

    graphs: float
    host: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.graphs + self.host


def scoring_cost(path: Path, rounds: int) -> ScoringCost:
    """What a bundle's own rules and their scorers take."""
    with tempfile.TemporaryDirectory() as directory:
        with _profiled(Path(directory)):
            host = _rules_seconds(path, rounds)
        return ScoringCost(_scorers_seconds(Path(directory)), host)


def _rules_seconds(path: Path, rounds: int) -> float:
    runner = BundleRunner(path)
    bundle, vision = runner.bundle, runner.manifest.vision
    stages = VisionStages(bundle, open_backend("onnxruntime", threads=THREADS))
    selectors = Selectors.open(path, bundle.manifest)
    pixels = np.random.default_rng(0).standard_normal((3, *vision.image_size)).astype(np.float32)
    found = []
    for _ in range(rounds):
        given, spent = stages.look(pixels), _Clock()
        reduction = spent.on(lambda: stages.reduction(given))  # noqa: B023 - called at once
        if PATCH_FEATURES in given:
            spent.on(lambda: reduction.of(given[PATCH_FEATURES]))  # noqa: B023

        def select(*shown: Any, spent: _Clock = spent) -> Selection:
            return spent.on(lambda: selectors(*shown))

        _prefill(runner, Places.whole(vision).reduced(reduction), select)
        found.append(spent.seconds)
    stages.close()
    runner.decoder.close()
    return min(found)


def _prefill(runner: BundleRunner, places: Places, select: Any) -> None:
    placeholder = runner.manifest.vision.image_token_id
    ids = np.zeros(len(places) + TEXT_TOKENS, dtype=np.int64)
    ids[16 : 16 + len(places)] = placeholder
    runner.decoder.reset()
    chunk = Chunk.from_ids(ids, placeholder, [places])
    runner.decoder.prefill(runner.hidden[:, : len(ids)], chunk, select)


class _Clock:
    """Adds up what calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on(self, work: Any) -> Any:
        """Does it."""
        began = perf_counter()
        done = work()
        self.seconds += perf_counter() - began
        return done


@contextmanager
def _profiled(directory: Path) -> Iterator[None]:
    """Has ONNX Runtime write a profile there, of each session when it is closed."""
    plain = backend_module.session_options

    def options(library: Any, threads: int | None) -> Any:
        made = plain(library, threads)
        made.enable_profiling = True
        made.profile_file_prefix = str(directory / "stage")
        return made

    with mock.patch.object(backend_module, "session_options", options):
        yield


def _scorers_seconds(directory: Path) -> float:
    least: dict[tuple[str, str], float] = {}
    for file in directory.iterdir():
        for event in json.loads(file.read_text()):
            if event.get("cat") == "Node" and event["name"].startswith(_SCORERS):
                key = file.name, event["name"]
                least[key] = min(event["dur"] / 1e6, least.get(key, np.inf))
    return sum(least.values())
