from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from tests.benchmarks.peers.text_checkpoint import text_checkpoint
from tests.conftest import ExportBundle

from atp_models.random_configs import tiny_config


class Dense(NamedTuple):
    decoder: Path
    bundle: Path


@pytest.fixture(scope="session")
def tiny_dense(export_bundle: ExportBundle, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    """An unpruned bundle, and the decoder of its checkpoint by itself."""
    made = export_bundle(tiny_config(kv_heads=2), dense=True)
    decoder = tmp_path_factory.mktemp("decoder") / "decoder"
    return Dense(text_checkpoint(made.checkpoint, decoder), made.bundle)
