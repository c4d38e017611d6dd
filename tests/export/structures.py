"""Bundles of tiny checkpoints that spare visual tokens work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atp_export.job import ExportJob, ExportOptions, prepare_job
from atp_export.manifest_writer import write_manifest
from atp_export.parity import ParityReport
from atp_export.progress import QuietReporter
from atp_export.stage_writer import StageWriter
from atp_export.workspace import Workspace

HEADS = ["0110", "1010", "0110", "1111"]
ALL = {"window": 3, "heads": HEADS, "ffn_ratio": 2, "cut_layer": 3}


def exported(checkpoint: Path, bundle: Path, config: dict[str, Any], **options: Any) -> ExportJob:
    """Exports a checkpoint with that `pruning_config.json`, unchecked."""
    (checkpoint / "pruning_config.json").write_text(json.dumps(config))
    chosen = ExportOptions(**{"precision": "fp32", "dialect": "portable", **options})
    job = prepare_job(checkpoint, bundle, chosen)
    with Workspace(bundle, job.key()).open() as workspace:
        StageWriter(job, workspace, QuietReporter()).write_all()
        write_manifest(job, workspace)
        workspace.publish()
    return job


def misses(report: ParityReport) -> list[Any]:
    return [m for check in report.checks for m in check.measures if not m.passed]
