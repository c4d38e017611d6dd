"""Which mode a machine gets."""

from __future__ import annotations

from typing import Any

import pytest

from atp_export.job import ExportOptions, prepare_job
from atp_export.parity.modes import available_bytes, choose_mode, full_bytes
from atp_export.plan import ExportPlan


@pytest.fixture(scope="module")
def plan(tiny: Any) -> ExportPlan:
    job = prepare_job(
        tiny.checkpoint,
        tiny.bundle,
        ExportOptions(precision="fp16", dialect="native", prune_at=None, dense=False),
    )
    return job.plan


def test_full_holds_both_models_in_float32_whatever_the_precision(plan: ExportPlan) -> None:
    parameters = 263_000  # of the tiny LLaVA: 1.06 MB of float32

    assert full_bytes(plan) > 8 * parameters
    assert full_bytes(plan) > 1e9  # the libraries themselves


@pytest.mark.parametrize(("missing", "mode"), [(0, "full"), (1, "sampled")])
def test_mode_follows_the_memory_at_hand(plan: ExportPlan, missing: int, mode: str) -> None:
    chosen = choose_mode(plan, full_bytes(plan) - missing)

    assert chosen.name == mode
    assert "1.1 GB" in chosen.reason


def test_memory_at_hand_is_some(tmp_path: Any) -> None:
    assert available_bytes() > 10e6
