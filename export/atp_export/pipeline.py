"""The export itself: the steps in order, then the manifest, the checks and the rename."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from atp_export.footprint import predict_footprint
from atp_export.job import ExportJob
from atp_export.layout import EXPORT_REPORT, PARITY_REPORT
from atp_export.manifest_writer import write_manifest
from atp_export.parity import ParityReport, run_parity
from atp_export.progress import Reporter
from atp_export.stage_writer import StageWriter
from atp_export.workspace import Workspace, check_space, is_bundle, write_atomically
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.manifest import read_manifest
from atp_runtime.schema import to_json


@dataclass(frozen=True)
class ExportResult:
    """What an export did.

    Attributes:
        parity: The check's report; None if it was switched off or the bundle was there.
        resumed: Steps that a former, interrupted export had finished.
        seconds: Time per step, and "total".
        unchanged: The bundle was already there, made from the same inputs.
    """

    parity: ParityReport | None
    resumed: tuple[str, ...]
    seconds: dict[str, float]
    unchanged: bool = False


def export_bundle(job: ExportJob, *, parity: str, reporter: Reporter) -> ExportResult:
    """Writes and checks a bundle.

    Args:
        job: See `prepare_job`.
        parity: "full", "sampled", "off", or "auto" for what fits into memory.
        reporter: Where progress goes.

    Raises:
        InputError: The directory exists and is not this bundle.
        MachineError: The disk has no room.
        CheckFailedError: The checkpoint's values do not fit the precision.
    """
    if job.bundle.exists():
        _refuse_foreign(job)
        return ExportResult(None, (), {}, unchanged=True)
    start = time.perf_counter()
    with Workspace(job.bundle, job.key()).open() as workspace:
        done = sum(r.bytes for step in workspace.steps.values() for r in step.files.values())
        check_space(workspace.root, max(0, predict_footprint(job.plan).disk_bytes - done))
        writer = StageWriter(job, workspace, reporter)
        writer.write_all()
        write_manifest(job, workspace)
        report = None
        if parity != "off":
            report = run_parity(
                job.checkpoint,
                job.plan.spec,
                job.plan,
                workspace.root,
                mode=parity,
                report=reporter.note,
            )
            text = json.dumps(to_json(report), indent=2) + "\n"
            write_atomically(workspace.root / PARITY_REPORT, text)
        seconds = {**writer.seconds, "total": time.perf_counter() - start}
        result = ExportResult(report, workspace.resumed, seconds)
        record = {"key": job.key(), "command": job.command, "seconds": seconds}
        write_atomically(workspace.root / EXPORT_REPORT, json.dumps(record, indent=2) + "\n")
        if report is None or report.passed:
            workspace.publish()
    return result


def require_parity(job: ExportJob, result: ExportResult) -> None:
    """Refuses a bundle that does not compute what the checkpoint does.

    Raises:
        CheckFailedError: Parity was checked and failed.
    """
    if result.parity is not None and not result.parity.passed:
        raise CheckFailedError(
            f"{job.bundle}: parity failed",
            why="the bundle does not compute what the checkpoint does, so it was not published.",
            fix=f"read {job.bundle}.partial/{PARITY_REPORT}; with fp16, try --precision fp32.",
        )


def _refuse_foreign(job: ExportJob) -> None:
    if is_bundle(job.bundle):
        record = job.bundle / EXPORT_REPORT
        read_manifest(job.bundle)
        if record.is_file() and json.loads(record.read_text())["key"] == job.key():
            return
        what = "holds another bundle"
    else:
        what = "exists and is no bundle"
    raise InputError(
        f"{job.bundle}: {what}",
        why="an export never overwrites what it did not make.",
        fix="remove the directory, or name another one.",
    )
