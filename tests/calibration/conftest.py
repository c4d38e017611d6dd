from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atp_models.random_configs import tiny_config


@pytest.fixture(scope="session")
def two_dialects(export_bundle: Any) -> Path:
    """An FP32 bundle in both dialects: layers 0 and 1, a pruning point, layers 2 and 3."""
    made = export_bundle(tiny_config(kv_heads=2), dialect="both", prune_at=(2,))
    return Path(made.bundle)


@pytest.fixture(scope="session")
def two_dialects_fp16(export_bundle: Any) -> Path:
    """The same in FP16."""
    config = tiny_config(kv_heads=2)
    return Path(export_bundle(config, precision="fp16", dialect="both", prune_at=(2,)).bundle)


@pytest.fixture(scope="session")
def tiny_checkpoint(export_bundle: Any) -> Path:
    """What both are made of."""
    made = export_bundle(tiny_config(kv_heads=2), dialect="both", prune_at=(2,))
    return Path(made.checkpoint)
