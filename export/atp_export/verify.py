"""Checks a bundle that is there: hashes, the ONNX checker, parity with its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from rich.console import Console

from atp_export.job import prepare_job
from atp_export.parity import ParityReport, render_tree, run_parity
from atp_export.progress import Reporter
from atp_runtime.bundle import Bundle
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.manifest import Manifest


@dataclass(frozen=True)
class Verdict:
    """What was checked.

    Attributes:
        files: How many files have the recorded size and hash.
        stages: Names of the stages whose graphs the ONNX checker accepts.
        problems: One line per stage that it refuses.
        parity: None if no checkpoint was given.
    """

    files: int
    stages: tuple[str, ...]
    problems: tuple[str, ...]
    parity: ParityReport | None

    @property
    def passed(self) -> bool:
        """Whether every check that was made says yes."""
        return not self.problems and (self.parity is None or self.parity.passed)


def verify_bundle(
    path: Path, checkpoint: Path | None, *, parity: str, reporter: Reporter
) -> Verdict:
    """Checks a bundle.

    Args:
        path: The bundle.
        checkpoint: What it was exported from, for parity; None leaves parity out.
        parity: "full", "sampled" or "auto".
        reporter: Where progress goes.

    Raises:
        CheckFailedError: A file's hash is wrong.
        InputError: The bundle is malformed, or was exported from another checkpoint.
    """
    bundle = Bundle.open(path, verify="full")
    reporter.note(f"hashes: {len(bundle.manifest.files)} files are as exported")
    stages, problems = [], []
    for stage in bundle.manifest.stages:
        try:
            onnx.checker.check_model(str(bundle.path(stage.graph)))
            stages.append(stage.name)
        except onnx.checker.ValidationError as error:
            problems.append(f"{stage.name}: {error}")
    report = _parity(bundle, checkpoint, parity, reporter) if checkpoint else None
    return Verdict(len(bundle.manifest.files), tuple(stages), tuple(problems), report)


def _parity(bundle: Bundle, checkpoint: Path, mode: str, reporter: Reporter) -> ParityReport:
    manifest = bundle.manifest
    job = prepare_job(
        checkpoint,
        bundle.root,
        precision=manifest.precision,
        dialect=manifest.dialect,
        prune_at=_cuts(manifest) or None,
        dense=not _cuts(manifest),
        max_tokens=manifest.axes["tokens"].maximum,
    )
    if job.checkpoint.fingerprint() != manifest.provenance.checkpoint_fingerprint:
        raise InputError(
            f"{checkpoint}: not the checkpoint of this bundle",
            why=f"the bundle was exported from {manifest.provenance.model} with other contents.",
            fix="point --checkpoint to the directory the bundle was exported from.",
        )
    return run_parity(
        job.checkpoint, job.plan.spec, job.plan, bundle.root, mode=mode, report=reporter.note
    )


def _cuts(manifest: Manifest) -> tuple[int, ...]:
    return tuple(stage.layers[1] for stage in manifest.segments[:-1])


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Prints the checks as a tree of ticks."""
    console.print(f"✓ hashes of {verdict.files} files", highlight=False)
    if verdict.stages:
        console.print(f"✓ ONNX checker: {', '.join(verdict.stages)}", highlight=False)
    for problem in verdict.problems:
        console.print(f"✗ ONNX checker: {problem}", highlight=False, markup=False)
    if verdict.parity is None:
        console.print("- parity: not checked, no --checkpoint given", highlight=False)
    else:
        console.print(render_tree(verdict.parity), highlight=False, markup=False)


def require_verified(path: Path, verdict: Verdict) -> None:
    """Refuses a bundle of which a check said no.

    Raises:
        CheckFailedError: The ONNX checker or parity failed.
    """
    if not verdict.passed:
        raise CheckFailedError(
            f"{path}: verification failed",
            why="see the checks above: this bundle does not do what its checkpoint does.",
            fix="export it again; if it fails again, try --precision fp32 and report the tree.",
        )
