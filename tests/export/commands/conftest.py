"""Where the bundles of these tests are made."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A place in a directory that is not there yet either."""
    return tmp_path / "out" / "bundle"
