"""Routed bundles against PyTorch: what is found when the device weighs or keeps otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from tests.routers import with_routers

from atp_export.job import ExportJob, ExportOptions, prepare_job
from atp_export.parity import ParityReport, run_parity
from atp_export.pipeline import export_bundle
from atp_export.progress import QuietReporter
from atp_models.routers import router_name
from atp_runtime import decoder
from atp_runtime.segment_entry import route_weights


@pytest.fixture(scope="module")
def job(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> ExportJob:
    """Layer 2 is routed."""
    directory = tmp_path_factory.mktemp("routed")
    trained = with_routers(tiny.checkpoint, directory / "trained", (2,))
    settings = {"layers": [2], "ratio": 0.5}
    options = ExportOptions("fp32", "portable", policy="videollm_mod", settings=settings)
    job = prepare_job(trained, directory / "bundle", options)
    export_bundle(job, parity="off", reporter=QuietReporter())
    return job


def parity(job: ExportJob, mode: str) -> ParityReport:
    plan = job.plan
    return run_parity(job.checkpoint, plan.spec, plan, job.bundle, mode=mode, report=lambda _: None)


def failed(report: ParityReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_a_routed_bundle_computes_what_pytorch_does(job: ExportJob, mode: str) -> None:
    assert parity(job, mode).passed


def test_other_weights_are_found(job: ExportJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "route_weights", lambda *given: 0.5 * route_weights(*given))
    assert failed(parity(job, "full")) == {"whole", "pruned"}


@pytest.mark.parametrize("mode", ["full", "sampled"])
def test_another_router_is_found(
    job: ExportJob, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(job.checkpoint)
    read = kind.read
    scale = {router_name(2): 1.1}
    monkeypatch.setattr(kind, "read", lambda it, name: read(it, name) * scale.get(name, 1))
    assert "segment_0" in failed(parity(job, mode))


def test_what_the_report_compares_has_the_router_in_it(job: ExportJob) -> None:
    report = parity(job, "full")
    compared = {measure.tensor for check in report.checks for measure in check.measures}
    assert {"scores.router", "scores.router before layer 2"} <= compared
