"""Whether a bundle has engines for this machine, told from their records; no plan is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atp_export.doctor.finding import Finding, reason
from atp_export.doctor.system import System
from atp_runtime.engine_set import Engine, Target, described_targets, engines_for
from atp_runtime.manifest import Manifest, Stage

_BUILD = "atp-export engines BUNDLE, on this machine."


@dataclass(frozen=True)
class StageEngine:
    """A stage's engine for this machine.

    Attributes:
        stage: The stage.
        engine: What was recorded of it; None if it was never built.
        problem: Why it cannot be used; "" if it can.
    """

    stage: Stage
    engine: Engine | None
    problem: str


def this_target(system: System) -> Target:
    """What engines must be built for to run here.

    Raises:
        LookupError: TensorRT's Python module is missing.
        OSError: There is no GPU.
    """
    version = system.version("tensorrt")
    if version is None:
        raise LookupError("TensorRT's Python module is not installed")
    gpu = system.gpu()
    return Target("tensorrt", version, gpu.sm, gpu.name)


def stage_engines(root: Path, manifest: Manifest, target: Target | None) -> list[StageEngine]:
    """The engines of all stages.

    Args:
        root: The bundle's directory.
        manifest: Its manifest.
        target: This machine; None where it cannot run engines.

    Raises:
        InputError: What lists the engines is malformed.
    """
    if target is None:
        return [StageEngine(stage, None, "no engine for this machine") for stage in manifest.stages]
    recorded = engines_for(root, target)
    found = []
    for stage in manifest.stages:
        engine = recorded.engines.get(stage.name) if recorded else None
        problem = _problem(manifest, root / target.directory, engine)
        found.append(StageEngine(stage, engine, problem))
    return found


def engines_finding(
    subject: str, root: Path, system: System, engines: list[StageEngine]
) -> Finding:
    """Says for what the engines are, or what is missing."""
    try:
        target = this_target(system)
    except (OSError, LookupError) as error:
        found = f"none can be built or run here: {reason(error)}{_others(root, None)}"
        fix = "see TensorRT and GPU above. Without engines: atp-run --backend onnxruntime."
        return Finding(subject, found, ok=False if system.is_jetson else None, fix=fix)
    bad = [engine.stage.name for engine in engines if engine.problem]
    if not bad:
        return Finding(subject, f"all for {target}")
    missing = "none" if len(bad) == len(engines) else f"not {', '.join(bad)}"
    found = f"{missing} for {target}{_others(root, target)}"
    return Finding(subject, found, ok=False, fix=_BUILD)


def _problem(manifest: Manifest, directory: Path, engine: Engine | None) -> str:
    if engine is None:
        return "no engine yet"
    changed = engine.changed_source(manifest.files)
    if changed is not None:
        return f"the engine is of another {changed}"
    plan = directory / engine.file
    if not plan.is_file() or plan.stat().st_size != engine.record.bytes:
        return "the engine's file is missing or incomplete"
    return ""


def _others(root: Path, target: Target | None) -> str:
    """What the bundle has engines for besides."""
    found = described_targets(root, but=target)
    return f"; there are some for {', '.join(found)}" if found else ""
