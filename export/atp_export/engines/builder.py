"""Builds a bundle's engines, one stage after the other; what is finished stays finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from atp_export.engines.build import PROFILING_VERBOSITY, build_stage
from atp_export.engines.dialect import choose_dialect
from atp_export.engines.library import Library
from atp_export.engines.memory import available_memory, plan_bytes
from atp_export.engines.monitor import BuildMonitor, PhaseBars, SilentMonitor
from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import stage_profiles
from atp_export.engines.store import EngineDirectory
from atp_export.progress import BarReporter, Reporter
from atp_export.workspace import check_space, work_key
from atp_runtime.bundle import Bundle
from atp_runtime.engine_set import Engine, EngineProfile, Target
from atp_runtime.latency.memory import build_bytes, weight_bytes
from atp_runtime.manifest import Manifest, Stage


@dataclass(frozen=True)
class StageEngine:
    """A stage's engine, and whether an earlier build had made it."""

    stage: str
    engine: Engine
    reused: bool


@dataclass(frozen=True)
class BuildResult:
    """The engines of a bundle.

    Attributes:
        directory: Where they are.
        target: What they run on.
        dialect: Which graphs they were built from.
        stages: In the order they run.
        seconds: All of it took.
    """

    directory: Path
    target: Target
    dialect: str
    stages: tuple[StageEngine, ...]
    seconds: float


@dataclass(frozen=True)
class _Job:
    stage: Stage
    profiles: tuple[EngineProfile, ...]
    stamp: str
    sources: Mapping[str, str]


def build_engines(
    bundle: Bundle, library: Library, options: EngineOptions, reporter: Reporter
) -> BuildResult:
    """Builds the engines that are missing or out of date.

    Args:
        bundle: An open one, so its files are those it was exported with.
        library: What builds, and for which GPU.
        options: How.
        reporter: Told about every stage.

    Raises:
        InputError: The options do not fit the bundle, its dialects do not fit TensorRT, another
            process is building the same, or TensorRT refuses a graph.
        MachineError: There is too little disk space or memory, or TensorRT fails.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    start = perf_counter()
    native = library.has_native_operators
    dialect = choose_dialect(bundle.manifest, has_native=native, wanted=options.dialect)
    bundle = bundle.in_dialect(dialect)
    manifest = bundle.manifest
    jobs = [_job(manifest, stage, library.target, options) for stage in manifest.stages]
    with EngineDirectory(bundle.root, library.target, dialect).open() as directory:
        directory.keep_only(tuple(job.stage.name for job in jobs))
        reusable = {job.stage.name: directory.reusable(job.stage.name, job.stamp) for job in jobs}
        missing = [job.stage for job in jobs if reusable[job.stage.name] is None]
        check_space(directory.root, _plan_bytes(manifest, missing))
        stages = []
        for job in jobs:
            name = job.stage.name
            engine = reusable[name]
            if engine is None:
                engine = _build(bundle, library, job, options, directory, reporter)
            stages.append(StageEngine(name, engine, reused=reusable[name] is not None))
    seconds = perf_counter() - start
    return BuildResult(directory.root, library.target, dialect, tuple(stages), seconds)


def _job(manifest: Manifest, stage: Stage, target: Target, options: EngineOptions) -> _Job:
    profiles = stage_profiles(manifest, stage, options)
    files = {name: manifest.files[name] for name in (stage.graph, *stage.data)}
    limits = options.workspace_bytes, options.optimisation_level, PROFILING_VERBOSITY
    stamp = work_key(files, profiles, limits, target.library, target.version, target.sm)
    sources = {name: record.sha256 for name, record in files.items()}
    return _Job(stage, profiles, stamp, sources)


def _plan_bytes(manifest: Manifest, stages: Sequence[Stage]) -> int:
    return sum(plan_bytes(weight_bytes(manifest, stage)) for stage in stages)


def _build(
    bundle: Bundle,
    library: Library,
    job: _Job,
    options: EngineOptions,
    directory: EngineDirectory,
    reporter: Reporter,
) -> Engine:
    """Builds and writes one engine, which is out of memory again when the next one is built."""
    stage = job.stage
    _warn_of_memory(bundle.manifest, stage, reporter)
    with _monitor(stage.name, reporter) as monitor:
        built = build_stage(
            library,
            bundle.path(stage.graph),
            stage,
            job.profiles,
            options,
            monitor,
            directory.timing_cache,
        )
    engine = directory.add(stage.name, built, job.profiles, job.stamp, job.sources)
    directory.keep_timing_cache(built.timing_cache)
    reporter.note(f"{stage.name}: built in {built.seconds:.1f} s")
    return engine


def _monitor(stage: str, reporter: Reporter) -> AbstractContextManager[BuildMonitor]:
    """Bars where the reporter draws some."""
    return PhaseBars(stage) if isinstance(reporter, BarReporter) else nullcontext(SilentMonitor())


def _warn_of_memory(manifest: Manifest, stage: Stage, reporter: Reporter) -> None:
    needed, free = build_bytes(weight_bytes(manifest, stage)), available_memory()
    if needed > free:
        reporter.note(
            f"{stage.name}: building may take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "available; if it fails, add swap, lower --max-tokens or --workspace, or export "
            "smaller segments with atp-export --max-segment-bytes"
        )
