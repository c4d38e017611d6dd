"""Checkpoints, bundles and comparisons that tests of policies make step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from atp_export.job import ExportJob, ExportOptions, prepare_job
from atp_export.parity import run_parity
from atp_export.parity.report import ParityReport
from atp_export.pipeline import export_bundle
from atp_export.progress import QuietReporter
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config


def checkpoints(
    directories: pytest.TempPathFactory, kinds: Mapping[str, Mapping[str, Any]]
) -> Callable[[str], Path]:
    """Gives a checkpoint by the name of its kind, options of `tiny_config`; each is made once."""
    made: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in made:
            made[name] = directories.mktemp("kind")
            write_random_checkpoint(made[name], tiny_config(**kinds[name]))
        return made[name]

    return checkpoint


def exported(checkpoint: Path, bundle: Path, policy: str, settings: Mapping[str, Any]) -> ExportJob:
    """A portable bundle in FP32, not compared."""
    options = ExportOptions("fp32", "portable", policy=policy, settings=settings)
    job = prepare_job(checkpoint, bundle, options)
    export_bundle(job, parity="off", reporter=QuietReporter())
    return job


def parity(job: ExportJob, mode: str = "full") -> ParityReport:
    """A comparison of the bundle with PyTorch."""
    plan = job.plan
    return run_parity(job.checkpoint, plan.spec, plan, job.bundle, mode=mode, report=lambda _: None)
