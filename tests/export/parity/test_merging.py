"""Bundles that merge tokens against PyTorch, in both modes, and what is found when they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atp_export.job import ExportJob, ExportOptions, prepare_job
from atp_export.parity import ParityReport, run_parity
from atp_export.pipeline import export_bundle
from atp_export.progress import QuietReporter
from atp_runtime.manifest import AxisRange, read_manifest
from atp_runtime.segment_entry import Entry


@pytest.fixture(scope="module")
def job(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> ExportJob:
    """Tokens are merged before layer 2."""
    options = ExportOptions("fp32", "portable", policy="illava", settings={"layer": 2})
    job = prepare_job(tiny.checkpoint, tmp_path_factory.mktemp("merging") / "bundle", options)
    export_bundle(job, parity="off", reporter=QuietReporter())
    return job


def parity(job: ExportJob, mode: str) -> ParityReport:
    plan = job.plan
    return run_parity(job.checkpoint, plan.spec, plan, job.bundle, mode=mode, report=lambda _: None)


def test_only_the_segment_behind_the_point_is_told_what_to_merge(job: ExportJob) -> None:
    manifest = read_manifest(job.bundle)
    assert [stage.merges for stage in manifest.segments] == [False, True]
    longest = manifest.axes["tokens"].maximum
    assert manifest.axes["merged"] == AxisRange(1, 1, longest // 2)


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_a_merging_bundle_computes_what_pytorch_does(job: ExportJob, mode: str) -> None:
    assert parity(job, mode).passed


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_other_shares_are_found(job: ExportJob, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Entry.merge_weights.fget
    assert weights is not None
    monkeypatch.setattr(Entry, "merge_weights", property(lambda it: np.float32(0.5) * weights(it)))

    report = parity(job, mode)

    failed = {check.name for check in report.checks if not check.passed}
    assert "segment_1" in failed
    assert failed <= {"segment_1", "pruned"}
