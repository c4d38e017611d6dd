"""What the exporter's tests share: a small checkpoint, and its stages composed once each."""

# ruff: noqa: PLC0415 - as in the conftest above this one

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from atp_export.compose import StageComposer
    from atp_export.job import ExportJob
    from atp_models.architecture import ModelSpec


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


@pytest.fixture(scope="session")
def composer(spec: ModelSpec) -> Callable[[str, str], StageComposer]:
    """The composer of a dialect and precision; it traces each piece once in the whole run."""
    from functools import cache

    from atp_export.compose import StageComposer
    from atp_export.plan import DTYPES

    return cache(
        lambda dialect, precision: StageComposer(spec, dialect=dialect, dtype=DTYPES[precision])
    )


@pytest.fixture
def make_job(checkpoint: Path, tmp_path: Path) -> Callable[..., ExportJob]:
    """A job that exports `checkpoint` into `tmp_path / "bundle"`, unless told otherwise."""
    from atp_export.job import prepare_job

    def make(source: Path = checkpoint, bundle: Path | None = None, **options: Any) -> ExportJob:
        defaults: dict[str, Any] = {
            "precision": "fp32",
            "dialect": "portable",
            "prune_at": None,
            "dense": False,
        }
        return prepare_job(source, bundle or tmp_path / "bundle", **{**defaults, **options})

    return make
