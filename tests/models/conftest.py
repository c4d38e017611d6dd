"""A tiny checkpoint of two decoder layers."""

import shutil
from pathlib import Path

import pytest

from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so no test may change it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_random_checkpoint(directory, tiny_config(layers=2))
    return directory


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own for each test, free to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
