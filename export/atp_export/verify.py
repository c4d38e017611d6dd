"""Checks a bundle that is there: hashes, the ONNX checker, parity with its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from rich.console import Console

from atp_export.job import ExportOptions, prepare_job
from atp_export.parity import ParityReport, render_tree, run_parity
from atp_export.progress import Reporter
from atp_models.checkpoint import Checkpoint
from atp_runtime.bundle import Bundle, verify_files
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.manifest import Manifest, Stage, read_manifest


@dataclass(frozen=True)
class Verdict:
    """What was checked.

    Attributes:
        files: How many files have the recorded size and hash.
        stages: Names of the stages whose graphs the ONNX checker accepts.
        problems: One line per stage that it refuses.
        parity: None if no checkpoint was given or a graph was refused.
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
    bundle = Bundle(path.resolve(), read_manifest(path))
    if checkpoint:
        _require_origin(bundle.manifest, checkpoint)
    _check_hashes(bundle, reporter)
    problems = {stage.name: _graph_problem(bundle, stage) for stage in bundle.manifest.stages}
    found = tuple(f"{name}: {problem}" for name, problem in problems.items() if problem)
    compared = checkpoint if not found else None
    return Verdict(
        files=len(bundle.manifest.files),
        stages=tuple(name for name, problem in problems.items() if problem is None),
        problems=found,
        parity=_parity(bundle, compared, parity, reporter) if compared else None,
    )


def _check_hashes(bundle: Bundle, reporter: Reporter) -> None:
    total = sum(record.bytes for record in bundle.manifest.files.values())
    before = 0
    with reporter.task("hashes", total) as advance:

        def in_all(_name: str, done: int, _total: int) -> None:
            nonlocal before
            advance(done - before)
            before = done

        verify_files(bundle, in_all)


def _graph_problem(bundle: Bundle, stage: Stage) -> str | None:
    """What the ONNX checker, shape inference included, has against a stage's graphs."""
    for graph in (stage.graph, *stage.other_graphs.values()):
        try:
            onnx.checker.check_model(str(bundle.path(graph)), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            return f"{graph}: {' '.join(str(error).split())}"
    return None


def _require_origin(manifest: Manifest, checkpoint: Path) -> None:
    found = Checkpoint.open(checkpoint).fingerprint()
    if found != manifest.provenance.checkpoint_fingerprint:
        raise InputError(
            f"{checkpoint}: not the checkpoint of this bundle",
            why=f"the bundle was exported from {manifest.provenance.model} with other contents.",
            fix="point --checkpoint to the directory the bundle was exported from.",
        )


def _parity(bundle: Bundle, checkpoint: Path, mode: str, reporter: Reporter) -> ParityReport:
    manifest = bundle.manifest
    job = prepare_job(
        checkpoint,
        bundle.root,
        ExportOptions(
            precision=manifest.precision,
            dialect="both" if manifest.other_dialects else manifest.dialect,
            dense=True,  # where it prunes, the bundle says
            max_tokens=manifest.axes["tokens"].maximum,
        ),
    )
    spec, plan = job.plan.spec, job.plan
    with reporter.waiting("comparing with PyTorch"):
        return run_parity(job.checkpoint, spec, plan, bundle.root, mode=mode, report=reporter.note)


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Prints the checks as a tree of ticks."""
    console.print(f"✓ hashes of {verdict.files} files", highlight=False)
    if verdict.stages:
        console.print(f"✓ ONNX checker: {', '.join(verdict.stages)}", highlight=False)
    for problem in verdict.problems:
        console.print(f"✗ ONNX checker: {problem}", highlight=False, markup=False)
    if verdict.parity is None:
        reason = "a graph was refused" if verdict.problems else "no --checkpoint given"
        console.print(f"- parity: not checked, {reason}", highlight=False)
    else:
        console.print(render_tree(verdict.parity), highlight=False, markup=False)


def failure(path: Path, verdict: Verdict) -> CheckFailedError | None:
    """What to say of a bundle of which a check said no, if one did."""
    if verdict.passed:
        return None
    failed = ["parity failed"] if verdict.parity and not verdict.parity.passed else []
    return CheckFailedError(
        f"{path}: verification failed",
        why="; ".join([*verdict.problems, *failed]),
        fix="export it again; if it fails again, try --precision fp32 and report the tree.",
    )
