"""What the exporter's tests share: a small checkpoint, and its stages composed once each."""

# ruff: noqa: PLC0415 - as in the conftest above this one

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from tests.export.command_line import Run

    from atp_export.compose import StageComposer
    from atp_export.job import ExportJob
    from atp_export.progress import Reporter
    from atp_models.architecture import ModelSpec


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `atp-export` in this process."""
    from tests.export.command_line import Output

    from atp_export.cli import main

    def run_here(*words: str | Path) -> Output:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Output(code, *capsys.readouterr())

    return run_here


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers with 2 key/value heads for 4 query heads; shared, so no test may change it."""
    from atp_models.random_checkpoint import write_random_checkpoint
    from atp_models.random_configs import tiny_config

    directory = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(directory, tiny_config(kv_heads=2))
    return directory


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    import shutil

    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def spec(checkpoint: Path) -> ModelSpec:
    """The architecture of `checkpoint`."""
    from atp_models.architecture import read_architecture
    from atp_models.checkpoint import Checkpoint

    return read_architecture(Checkpoint.open(checkpoint))


@pytest.fixture(scope="session", autouse=True)
def trace_once() -> Iterator[None]:
    """Traces the pieces of a config, dialect and precision once in the whole run."""
    from functools import cache

    from atp_export import compose
    from atp_export.traced_pieces import TracedPieces

    specs: dict[str, ModelSpec] = {}
    traced = cache(
        lambda name, dialect, dtype: TracedPieces(specs[name], dialect=dialect, dtype=dtype)
    )

    def pieces(spec: ModelSpec, *, dialect: str, dtype: torch.dtype) -> TracedPieces:
        # What a spec says of images is not all in the config.
        name = spec.transformers_config().to_json_string(use_diff=False) + repr(spec)
        specs[name] = spec
        return traced(name, dialect, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "TracedPieces", pieces)
        yield


@pytest.fixture(scope="session")
def composer(spec: ModelSpec) -> Callable[[str, str], StageComposer]:
    """The composer of a dialect and precision."""
    from atp_export.compose import StageComposer
    from atp_export.plan import DTYPES

    return lambda dialect, precision: StageComposer(spec, dialect=dialect, dtype=DTYPES[precision])


@pytest.fixture
def make_job(checkpoint: Path, tmp_path: Path) -> Callable[..., ExportJob]:
    """A job that exports `checkpoint` into `tmp_path / "bundle"`, unless told otherwise."""
    from atp_export.job import ExportOptions, prepare_job

    def make(source: Path = checkpoint, bundle: Path | None = None, **options: Any) -> ExportJob:
        chosen = ExportOptions(**{"precision": "fp32", "dialect": "portable", **options})
        return prepare_job(source, bundle or tmp_path / "bundle", chosen)

    return make


@pytest.fixture(scope="session")
def published(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportJob:
    """An export of `checkpoint` in fp32, pruned before layer 2, that ran through unchecked.

    Shared, so no test may change its bundle.
    """
    from atp_export.job import ExportOptions, prepare_job
    from atp_export.pipeline import export_bundle
    from atp_export.progress import QuietReporter

    bundle = tmp_path_factory.mktemp("published") / "bundle"
    options = ExportOptions(precision="fp32", dialect="portable", prune_at=[2])
    job = prepare_job(checkpoint, bundle, options)
    export_bundle(job, parity="off", reporter=QuietReporter())
    return job


@pytest.fixture
def stumble_at() -> Callable[[str], Reporter]:
    """A reporter that interrupts the export when a step begins to write."""
    from atp_export.progress import QuietReporter

    class Stumbling(QuietReporter):
        def __init__(self, step: str) -> None:
            self.step = step

        def task(self, title: str, total_bytes: int) -> Any:
            if title == self.step:
                raise KeyboardInterrupt
            return super().task(title, total_bytes)

    return Stumbling
