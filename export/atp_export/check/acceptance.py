"""Builds every stage of a bundle with TensorRT-RTX, for Ampere and without a GPU.

That proves that a parser takes the graphs and a builder finds kernels for them, with every
profile. It proves nothing about speed, and nothing about TensorRT 10.3, see `lint`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from atp_export.check.int8 import assumed_ranges, sampled_ranges, write_int8
from atp_export.check.lint import lint
from atp_export.engines.build import build_stage
from atp_export.engines.failures import BuildFailedError, GraphRefusedError
from atp_export.engines.library import Library, check_library
from atp_export.engines.monitor import SilentMonitor
from atp_export.engines.options import EngineOptions
from atp_export.engines.profiles import stage_profiles
from atp_export.progress import Reporter
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import PORTABLE, Stage

INT8 = "int8"

Ranges = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class StageVerdict:
    """Whether one graph became an engine.

    Attributes:
        dialect: The graph's.
        precision: "fp32", "fp16", "int8" or, of a calibrated bundle, "int4".
        stage: Its stage.
        problem: What the parser or the builder said, or None if there is an engine.
        layers: Of the network, as parsed; 0 if it was refused.
        types: How many of their outputs have each type, by TensorRT's name for it.
        engine_bytes: Of the engine; 0 without one.
        seconds: Parsing and building took.
    """

    dialect: str
    precision: str
    stage: str
    problem: str | None
    layers: int
    types: Mapping[str, int]
    engine_bytes: int
    seconds: float

    @property
    def accepted(self) -> bool:
        """Whether there is an engine."""
        return self.problem is None


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        library: What built, with its version.
        sm: The compute capability it built for.
        ranges: Where INT8's numbers come from: "sampled", "assumed" without the memory to run
            the bundle, or "calibrated" where it is quantised already.
        verdicts: One per dialect, precision and stage.
        lint: What TensorRT 10.3 is not documented to take, by "precision stage" of the portable
            dialect; only entries with complaints.
        linted: Whether there was a portable dialect to lint.
        seconds: Wall time.
        passed: Whether every graph became an engine and the portable ones have no complaints.
    """

    library: str
    sm: int
    ranges: str
    verdicts: tuple[StageVerdict, ...]
    lint: Mapping[str, tuple[str, ...]]
    linted: bool
    seconds: float
    passed: bool


@dataclass(frozen=True)
class _Graph:
    """A graph to build; `file` holds the very graph of the bundle or its INT8 copy."""

    dialect: str
    precision: str
    stage: Stage
    file: Path


def check_bundle(bundle: Bundle, options: EngineOptions, reporter: Reporter) -> CheckReport:
    """Builds every stage in every dialect, as it is and in INT8 unless the bundle is quantised.

    Args:
        bundle: An opened one.
        options: Of them `dialect`, `max_tokens`, `kept`, `workspace_bytes` and
            `optimisation_level`.
        reporter: Told about every stage.

    Raises:
        InputError: The options do not fit the bundle.
        MachineError: TensorRT-RTX is not there, or the disk has no room for INT8 copies.
    """
    start = time.perf_counter()
    library = check_library()
    dialects = (options.dialect,) if options.dialect else bundle.manifest.dialects
    views = {dialect: bundle.in_dialect(dialect) for dialect in dialects}
    ranges, source = _ranges(bundle, reporter)
    verdicts, complaints = [], {}
    with tempfile.TemporaryDirectory(prefix="atp-check-") as folder:
        for dialect, view in views.items():
            for graph in _graphs(dialect, view, ranges, Path(folder)):
                verdict = _build(library, view, graph, options)
                reporter.note(_line(verdict))
                verdicts.append(verdict)
                found = _lint(graph.file) if dialect == PORTABLE else ()
                if found:
                    complaints[f"{graph.precision} {graph.stage.name}"] = found
    return CheckReport(
        library=f"{library.target.library} {library.target.version}",
        sm=library.target.sm,
        ranges=source,
        verdicts=tuple(verdicts),
        lint=complaints,
        linted=PORTABLE in dialects,
        seconds=time.perf_counter() - start,
        passed=all(verdict.accepted for verdict in verdicts) and not complaints,
    )


def _ranges(bundle: Bundle, reporter: Reporter) -> tuple[Ranges, str]:
    """What INT8 copies are made with, by stage, and where it comes from."""
    if bundle.manifest.quantisation is not None:
        return {}, "calibrated"
    with reporter.waiting("calibrating INT8 on made pictures"):
        sampled = sampled_ranges(bundle)
    return (assumed_ranges(bundle), "assumed") if sampled is None else (sampled, "sampled")


def _graphs(dialect: str, view: Bundle, ranges: Ranges, folder: Path) -> Iterator[_Graph]:
    """The graphs of a dialect; an INT8 copy is there until the next one is asked for."""
    manifest = view.manifest
    quantised = manifest.quantisation
    precision = manifest.precision if quantised is None else quantised.weights
    for stage in manifest.stages:
        yield _Graph(dialect, precision, stage, view.path(stage.graph))
    if quantised is not None:
        return
    for stage in manifest.stages:
        copy = folder / "int8.onnx"
        if write_int8(view.path(stage.graph), ranges.get(stage.name, {}), copy):
            yield _Graph(dialect, INT8, stage, copy)


def _build(library: Library, view: Bundle, graph: _Graph, options: EngineOptions) -> StageVerdict:
    start = time.perf_counter()
    profiles = stage_profiles(view.manifest, graph.stage, options)
    names = graph.dialect, graph.precision, graph.stage.name
    try:
        built = build_stage(library, graph.file, graph.stage, profiles, options, SilentMonitor())
    except (GraphRefusedError, BuildFailedError) as error:
        return StageVerdict(*names, error.why, 0, {}, 0, time.perf_counter() - start)
    network = built.network
    return StageVerdict(
        *names, None, network.layers, network.types, built.plan.nbytes, built.seconds
    )


def _lint(file: Path) -> tuple[str, ...]:
    return lint(onnx.load(file, load_external_data=False))


def _line(verdict: StageVerdict) -> str:
    tick = "✓" if verdict.accepted else "✗"
    return f"{tick} {verdict.dialect} {verdict.precision} {verdict.stage}, {verdict.seconds:.1f} s"
