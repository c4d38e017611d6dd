"""Runs engines and ONNX Runtime on the same inputs, and records the verdict in the bundle.

Both run through the runtime's own backends, so what is checked is what will run. The backend of
TensorRT was not yet run on a GPU; the tests use another one in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from atp_export.engines.agreement import Bound, TensorAgreement, bound_of, compare_outputs
from atp_export.engines.alignment import aligned
from atp_export.engines.builder import BuildResult, StageEngine
from atp_export.engines.profiles import tensor_shape
from atp_export.engines.samples import Array, Moment, moments, sample_inputs
from atp_export.progress import Reporter
from atp_export.workspace import write_atomically
from atp_runtime.backends import Backend, LoadedStage, item_size
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import DECODE, Target
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.manifest import PORTABLE, Stage
from atp_runtime.schema import from_json, to_json
from atp_runtime.tensor_names import ROUTER_SCORES, ROW_SCORES, SCORES, TOWER_KEPT
from atp_runtime.tower_merging import TowerMerge
from atp_runtime.vision_stages import read_vision_rule


@dataclass(frozen=True)
class MomentCheck:
    """A stage in one call: lengths of its axes, and how its outputs agree."""

    moment: str
    lengths: Mapping[str, int]
    tensors: tuple[TensorAgreement, ...]


@dataclass(frozen=True)
class StageCheck:
    """A stage's engine in every call.

    Attributes:
        stage: The stage's name.
        stamp: Of the engine.
        passed: Whether there is something that was compared, and all of it passed.
        moments: The calls.
    """

    stage: str
    stamp: str
    passed: bool
    moments: tuple[MomentCheck, ...]


@dataclass(frozen=True)
class EnginesReport:
    """The engines of a target against ONNX Runtime.

    Attributes:
        passed: Whether every stage was compared and passed.
        target: What they run on.
        dialect: Which graphs they were built from.
        reference_dialect: Which graphs ONNX Runtime ran.
        bound: What passes.
        stages: In the order they run; fewer than there are where the check was interrupted.
    """

    passed: bool
    target: Target
    dialect: str
    reference_dialect: str
    bound: Bound
    stages: tuple[StageCheck, ...] = ()


def report_file(target: Target) -> str:
    """Where the verdict on a target's engines is, relative to the bundle."""
    return f"reports/engines-{PurePosixPath(target.directory).name}.json"


def check_engines(
    bundle: Bundle, built: BuildResult, engines: Backend, reference: Backend, reporter: Reporter
) -> EnginesReport:
    """Compares the engines that no earlier check passed, and writes the report.

    Args:
        bundle: An open one.
        built: Its engines.
        engines: Runs them.
        reference: Runs the graphs; the portable ones where there are any, which every ONNX
            Runtime has operators for.
        reporter: Told about every stage.

    Raises:
        InputError: A graph or an engine cannot be loaded.
        MachineError: Memory does not suffice, or the GPU fails.
    """
    held = bundle.manifest.dialects
    reference_dialect = PORTABLE if PORTABLE in held else built.dialect
    views = bundle.in_dialect(built.dialect), bundle.in_dialect(reference_dialect)
    bound = bound_of(bundle.manifest)
    path = bundle.root / report_file(built.target)
    report = EnginesReport(False, built.target, built.dialect, reference_dialect, bound)
    passed = _passed_before(path, report)
    for engine in built.stages:
        check = passed.get(engine.stage)
        if check is None or check.stamp != engine.engine.stamp:
            reporter.note(f"{engine.stage}: comparing with ONNX Runtime")
            check = _check_stage(engine, views, (engines, reference), bound)
        stages = (*report.stages, check)
        complete = len(stages) == len(built.stages)
        report = replace(report, stages=stages, passed=complete and all(s.passed for s in stages))
        write_atomically(path, json.dumps(to_json(report), indent=1) + "\n")
    return report


def check_failure(report: EnginesReport, path: Path) -> CheckFailedError | None:
    """What to tell where engines are not what their graphs are."""
    wrong = [stage for stage in report.stages if not stage.passed]
    if not wrong:
        return None
    stage = wrong[0]
    tensors = [(m.moment, t.tensor) for m in stage.moments for t in m.tensors if not t.passed]
    moment, tensor = tensors[0] if tensors else ("no call", "nothing")
    return CheckFailedError(
        f"{stage.stage}: its engine's {tensor} in {moment} is not what ONNX Runtime computes",
        why=f"answers would differ; {len(wrong)} of {len(report.stages)} stages failed. "
        f"{path} has the numbers.",
        fix="do not use these engines: try the other --dialect or --optimisation-level 0, and "
        "report it.",
    )


def _check_stage(
    built: StageEngine,
    views: tuple[Bundle, Bundle],
    backends: tuple[Backend, Backend],
    bound: Bound,
) -> StageCheck:
    calls = moments(built.engine.profiles)
    # One after the other: both at once would hold the weights twice.
    found, expected = (
        _outputs(view, view.manifest.stage(built.stage), calls, backend)
        for view, backend in zip(views, backends, strict=True)
    )
    rule = read_vision_rule(views[0].manifest)
    checks = []
    for call, ours, theirs in zip(calls, found, expected, strict=True):
        pair = _read(call, ours), _read(call, theirs)
        if isinstance(rule, TowerMerge) and TOWER_KEPT in theirs:
            pair = aligned(*pair, rule)
        checks.append(MomentCheck(call.name, call.lengths, compare_outputs(*pair, bound)))
    tensors = [tensor for check in checks for tensor in check.tensors]
    passed = bool(tensors) and all(tensor.passed for tensor in tensors)
    return StageCheck(built.stage, built.engine.stamp, passed, tuple(checks))


def _read(call: Moment, outputs: dict[str, Array]) -> dict[str, Array]:
    """What the runtime reads: nothing is selected while decoding.

    Scores of one token are few numbers, which rounding may leave with any sign.
    """
    unread = (*SCORES, ROW_SCORES, ROUTER_SCORES) if call.name == DECODE else ()
    return {name: array for name, array in outputs.items() if name not in unread}


def _outputs(
    bundle: Bundle, stage: Stage, calls: tuple[Moment, ...], backend: Backend
) -> tuple[dict[str, Array], ...]:
    loaded = backend.load(bundle, stage)
    try:
        return tuple(_run(loaded, stage, call, backend) for call in calls)
    finally:
        loaded.close()


def _run(loaded: LoadedStage, stage: Stage, call: Moment, backend: Backend) -> dict[str, Array]:
    inputs = {
        name: backend.upload(array) for name, array in sample_inputs(stage, call.lengths).items()
    }
    outputs = {}
    for spec in stage.outputs:
        shape = tensor_shape(spec, call.lengths)
        size = math.prod(shape) * item_size(spec.dtype)
        outputs[spec.name] = backend.allocate(size).array(shape, spec.dtype)
    loaded.run(inputs, outputs)
    return {
        name: array.copy()
        for name, array in zip(outputs, backend.download_all(*outputs.values()), strict=True)
    }


def _passed_before(path: Path, now: EnginesReport) -> dict[str, StageCheck]:
    """Stages that passed under the same conditions."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        report = from_json(EnginesReport, value, source=str(path), fix="remove it.")
    except (OSError, ValueError, InputError):
        return {}  # missing, or of another version
    conditions = (report.target, report.dialect, report.reference_dialect, report.bound)
    if conditions != (now.target, now.dialect, now.reference_dialect, now.bound):
        return {}
    return {stage.stage: stage for stage in report.stages if stage.passed}
