from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.latency.answering_bundle import write_answering, write_photos


@pytest.fixture(scope="session")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that can be asked about photos: 64 visual tokens, then 16, then 4."""
    return write_answering(tmp_path_factory.mktemp("answering") / "bundle")


@pytest.fixture
def own_answering(tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return write_answering(tmp_path / "bundle")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo."""
    return write_photos(tmp_path_factory.mktemp("photo"), 1)[0]
