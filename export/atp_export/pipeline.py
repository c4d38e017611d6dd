"""The export itself: the steps in order, then the manifest, the checks and the rename."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from atp_export.footprint import predict_footprint
from atp_export.job import ExportJob
from atp_export.layout import EXPORT_REPORT, PARITY_REPORT
from atp_export.manifest_writer import write_manifest
from atp_export.parity import ParityReport, run_parity
from atp_export.progress import Reporter
from atp_export.stage_writer import StageWriter
from atp_export.workspace import Workspace, check_space, write_atomically
from atp_runtime.bundle import Bundle
from atp_runtime.errors import AtpError, CheckFailedError, InputError
from atp_runtime.manifest import MANIFEST_NAME
from atp_runtime.schema import to_json


@dataclass(frozen=True)
class ExportResult:
    """What an export did.

    Attributes:
        parity: The check's report; None if it was switched off or the bundle was there.
        resumed: Steps that a former, interrupted export had finished.
        seconds: Time per step written, "parity" and "total".
        unchanged: The bundle was already there, made from the same inputs.
    """

    parity: ParityReport | None
    resumed: tuple[str, ...]
    seconds: dict[str, float]
    unchanged: bool = False


def export_bundle(job: ExportJob, *, parity: str, reporter: Reporter) -> ExportResult:
    """Writes and checks a bundle, and publishes it unless parity fails.

    Args:
        job: See `prepare_job`.
        parity: "full", "sampled", "off", or "auto" for what fits into memory.
        reporter: Where progress goes.

    Raises:
        InputError: The directory exists and is not this bundle, or another export writes it.
        MachineError: The disk has no room.
        CheckFailedError: The checkpoint's values are not finite in this precision.
    """
    if is_exported(job):
        return ExportResult(None, (), {}, unchanged=True)
    start = time.perf_counter()
    with Workspace(job.bundle, job.key()).open() as workspace:
        done = sum(r.bytes for step in workspace.steps.values() for r in step.files.values())
        check_space(workspace.root, max(0, predict_footprint(job.plan).disk_bytes - done))
        writer = StageWriter(job, workspace, reporter)
        writer.write_all()
        write_manifest(job, workspace)
        checked = time.perf_counter()
        report = None if parity == "off" else _check_parity(job, workspace.root, parity, reporter)
        end = time.perf_counter()
        seconds = {**writer.seconds, "parity": end - checked, "total": end - start}
        record = {"key": job.key(), "command": job.command, "seconds": seconds}
        write_atomically(workspace.root / EXPORT_REPORT, json.dumps(record, indent=2) + "\n")
        if report is None or report.passed:
            workspace.publish()
    return ExportResult(report, workspace.resumed, seconds)


def _check_parity(job: ExportJob, root: Path, mode: str, reporter: Reporter) -> ParityReport:
    spec, plan = job.plan.spec, job.plan
    with reporter.waiting("comparing with PyTorch"):
        report = run_parity(job.checkpoint, spec, plan, root, mode=mode, report=reporter.note)
    write_atomically(root / PARITY_REPORT, json.dumps(to_json(report), indent=2) + "\n")
    return report


def parity_failure(job: ExportJob, result: ExportResult) -> CheckFailedError | None:
    """What to say of a bundle that does not compute what the checkpoint does, if so."""
    if result.parity is None or result.parity.passed:
        return None
    return CheckFailedError(
        f"{job.bundle}: parity failed",
        why="the bundle does not compute what the checkpoint does, so it was not published.",
        fix=f"read {job.bundle}.partial/{PARITY_REPORT}; with fp16, try --precision fp32.",
    )


def is_exported(job: ExportJob) -> bool:
    """Whether the bundle that the job would make is already there.

    Raises:
        InputError: Something else is there, or the bundle is damaged.
    """
    path = job.bundle
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    if not (path / MANIFEST_NAME).is_file():
        is_checkpoint = path.is_dir() and path.samefile(job.checkpoint.path)
        raise InputError(
            f"{path}: {'is the checkpoint itself' if is_checkpoint else 'exists and is no bundle'}",
            why="an export never overwrites what it did not make.",
            fix="name a directory that does not exist yet.",
        )
    if _recorded_key(path) != job.key():
        raise InputError(
            f"{path}: holds another bundle",
            why="it was made from another checkpoint, with other options or package versions.",
            fix="remove that directory, or name another one.",
        )
    try:
        Bundle.open(path)
    except AtpError as error:
        raise InputError(
            f"{path}: was exported, and is damaged",
            why=error.what,
            fix="remove that directory and run the same command again.",
        ) from error
    return True


def _recorded_key(bundle: Path) -> object:
    try:
        return json.loads((bundle / EXPORT_REPORT).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
