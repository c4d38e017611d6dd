from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.runtime.latency.answering_bundle import write_answering, write_questions

from atp_calibration.budget.cost import Cost
from atp_calibration.budget.fit import Fitter
from atp_calibration.budget.passes import Passes
from atp_calibration.budget.prompts import Prompts
from atp_calibration.budget.target import Target
from atp_calibration.samples import Sample, read_samples
from atp_runtime.atp import load_pruning_weights
from atp_runtime.session import Session

SAMPLES = 16


class Opened(NamedTuple):
    """A bundle in a session, and its ATP modules."""

    session: Session
    weights: dict[str, object]


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about as many photos, all with the answer "red"."""
    return write_questions(tmp_path_factory.mktemp("questions"), SAMPLES)


@pytest.fixture(scope="session")
def samples(questions: Path) -> tuple[Sample, ...]:
    return read_samples(questions).samples


@pytest.fixture(scope="session")
def atp_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 visual tokens, pruned by ATP before layers 2 and 3 of 5; at least 2 stay."""
    root = tmp_path_factory.mktemp("budget") / "atp"
    return write_answering(root, "atp", ({"min_keep": 2}, {"min_keep": 2}))


@pytest.fixture(scope="session")
def top_k_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with shares of the tokens."""
    root = tmp_path_factory.mktemp("budget") / "top-k"
    return write_answering(root, "top_k", ({"ratio": 0.5}, {"ratio": 0.5}))


def opened(bundle: Path) -> Iterator[Opened]:
    with Session.open(bundle, threads=1) as session:
        file = session.model.manifest.pruning_weights
        yield Opened(session, dict(load_pruning_weights(bundle / file)) if file else {})


@pytest.fixture(scope="session")
def atp(atp_bundle: Path) -> Iterator[Opened]:
    yield from opened(atp_bundle)


@pytest.fixture(scope="session")
def top_k(top_k_bundle: Path) -> Iterator[Opened]:
    yield from opened(top_k_bundle)


def quiet(_work: str, _done: int, _total: int) -> None:
    pass


class MakeFitter:
    """Fitters on the same files of scores."""

    def __init__(self, samples: tuple[Sample, ...], directory: Path) -> None:
        self._samples = samples
        self.directory = directory

    def passes(self, opened: Opened) -> Passes:
        prompts = Prompts(opened.session)
        return Passes(prompts, self._samples, opened.weights, self.directory, quiet)

    def __call__(self, opened: Opened, target: Target) -> Fitter:
        manifest = opened.session.model.manifest
        points = [stage.pruning for stage in manifest.segments if stage.pruning]
        cost = Cost(manifest, target, None)
        return Fitter(manifest, points, self.passes(opened), opened.weights, target, cost)


@pytest.fixture
def fitter(samples: tuple[Sample, ...], tmp_path: Path) -> MakeFitter:
    return MakeFitter(samples, tmp_path / "work")
