"""Chooses how to check, checks, and gives the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from atp_export.parity.full import check_fully
from atp_export.parity.measures import Tolerance
from atp_export.parity.modes import Mode, available_bytes, choose_mode
from atp_export.parity.report import Check, Note, ParityReport
from atp_export.parity.sampled import check_samples
from atp_export.parity.samples import make_prompts
from atp_export.parity.tolerances import tolerances_of
from atp_export.plan import ExportPlan
from atp_export.versions import package_versions
from atp_models.architecture import ModelSpec
from atp_models.checkpoint import Checkpoint
from atp_models.reference import LlavaReference
from atp_models.reference_compressor import Compressor
from atp_models.reference_parts import ReferenceParts
from atp_models.routers import read_routers
from atp_runtime.bundle import Bundle
from atp_runtime.cell_queries import CellQueries
from atp_runtime.errors import InputError
from atp_runtime.manifest import Manifest, read_manifest
from atp_runtime.vision_stages import read_vision_rule

MODES = ("auto", "full", "sampled")


def run_parity(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: ExportPlan,
    bundle_root: Path,
    *,
    mode: str,
    report: Note,
) -> ParityReport:
    """Compares a bundle with its checkpoint.

    The files are taken as they are; whether they are those of the manifest is for
    `Bundle.open` to say.

    Args:
        checkpoint: What the bundle was exported from.
        spec: Its architecture.
        plan: What was exported.
        bundle_root: The bundle, or the workspace that will become one; with a manifest.
        mode: "full" and "sampled", or "auto" for what the machine's memory allows.
        report: Told what is being compared, a line at a time.

    Raises:
        InputError: There is no such mode, or the bundle cannot be loaded.
        MachineError: There is not enough memory.
    """
    start = time.perf_counter()
    chosen = _choose(mode, plan)
    bundle = Bundle(bundle_root.resolve(), read_manifest(bundle_root))
    tolerances = tolerances_of(plan.precision, bundle.manifest.quantisation)
    checks = _checks(chosen, checkpoint, spec, plan, bundle, tolerances, report)
    return ParityReport(
        mode=chosen.name,
        reason=chosen.reason,
        precision=plan.precision,
        dialects=plan.dialects,
        checks=checks,
        tolerances=tolerances,
        packages=package_versions(),
        seconds=time.perf_counter() - start,
        passed=bool(checks) and all(check.passed for check in checks),
    )


def _reference(checkpoint: Checkpoint, spec: ModelSpec, manifest: Manifest) -> LlavaReference:
    """As Transformers loads it; its own loading of integers needs other packages and a GPU."""
    routed = (stage.layers[0] for stage in manifest.segments if stage.routed)
    routers = read_routers(checkpoint, routed)
    compresses = isinstance(read_vision_rule(manifest), CellQueries)
    compressor = Compressor.read(checkpoint, spec.vision) if compresses else None
    if checkpoint.quantised:
        return LlavaReference.of_quantised(checkpoint, spec, routers, compressor)
    return LlavaReference.load(checkpoint.path, routers, compressor)


def _choose(mode: str, plan: ExportPlan) -> Mode:
    if mode not in MODES:
        known = ", ".join(MODES)
        raise InputError(f"no parity mode {mode!r}", why=f"there is {known}.", fix="choose one.")
    return choose_mode(plan, available_bytes()) if mode == "auto" else Mode(mode, "as asked")


def _checks(
    mode: Mode,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: ExportPlan,
    bundle: Bundle,
    tolerances: Mapping[str, Tolerance],
    report: Note,
) -> tuple[Check, ...]:
    if mode.name == "full":
        reference = _reference(checkpoint, spec, bundle.manifest)
        prompts = make_prompts(spec, plan.axes["tokens"].maximum)

        def check(view: Bundle) -> tuple[Check, ...]:
            return check_fully(view, reference, prompts, tolerances, report)
    else:
        parts = ReferenceParts(checkpoint, spec)

        def check(view: Bundle) -> tuple[Check, ...]:
            return check_samples(view, parts, spec, available_bytes(), tolerances, report)

    checks: list[Check] = []
    for dialect in plan.dialects:
        if len(plan.dialects) > 1:
            report(f"parity: dialect {dialect}")
        view = bundle.in_dialect(dialect)
        checks += [replace(made, dialect=dialect) for made in check(view)]
    return tuple(checks)
