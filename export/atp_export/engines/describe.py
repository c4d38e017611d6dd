"""Builds, checks and forecasts as tables for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from atp_export.engines.builder import BuildResult
from atp_export.engines.comparison import EnginesReport, StageCheck
from atp_export.engines.memory import BuildForecast
from atp_export.tables import megabytes, table
from atp_runtime.engine_set import EngineProfile

_COLUMNS = ("stage", "engine", "scratch", "layers", "seconds", "")
_AGREEMENT = ("stage", "worst 1 - cosine", "worst norm", "worst mean error", "agrees")


def print_engines(result: BuildResult, console: Console) -> None:
    """Prints what was built, and where it lies; what only a GPU could tell may be missing."""
    rows = [
        (
            stage.stage,
            megabytes(stage.engine.record.bytes),
            megabytes(stage.engine.scratch_bytes) if stage.engine.layers else "-",
            str(stage.engine.layers or "-"),
            f"{stage.engine.seconds:.1f}",
            "reused" if stage.reused else "built",
        )
        for stage in result.stages
    ]
    console.print(table(_COLUMNS, rows, right=_COLUMNS[1:5]))
    target = result.target
    built = f"{target.library} {target.version}, {target.gpu} (SM {target.sm})"
    text = f"{result.directory}: {result.dialect} graphs, {built}, {result.seconds:.1f} s"
    console.print(text, highlight=False, markup=False)


def print_agreement(report: EnginesReport, console: Console) -> None:
    """Prints how far each stage is from ONNX Runtime, at worst."""
    rows = [_agreement(stage) for stage in report.stages]
    console.print(table(_AGREEMENT, rows, right=_AGREEMENT[1:4]))


def print_forecast(
    forecast: BuildForecast, profiles: Mapping[str, tuple[EngineProfile, ...]], console: Console
) -> None:
    """Prints what building needs and this machine has, and what engines would be tuned for."""
    rows = [
        (
            stage.stage,
            megabytes(stage.weight_bytes),
            megabytes(stage.build_bytes),
            "yes" if stage.fits else "no",
            _tuned_for(profiles[stage.stage][0]),
        )
        for stage in forecast.stages
    ]
    columns = ("stage", "weights", "building", "fits now", "tuned for")
    console.print(table(columns, rows, right=columns[1:3]))
    free = megabytes(forecast.available_bytes)
    text = f"{free} of memory available; predictions by arithmetic, none was measured on a Jetson"
    console.print(text, style="dim", highlight=False)


def _tuned_for(profile: EngineProfile) -> str:
    """The profile's most telling axis."""
    for name, unit in (("kept", "tokens"), ("tokens", "tokens"), ("images", "images")):
        if name in profile.axes:
            axis = profile.axes[name]
            return f"{axis.typical} of up to {axis.maximum} {unit}"
    return ""


def _agreement(stage: StageCheck) -> tuple[str, ...]:
    tensors = [tensor for moment in stage.moments for tensor in moment.tensors]
    cosines = [1 - t.cosine for t in tensors if t.cosine is not None]
    ratios = [abs(t.norm_ratio - 1) for t in tensors if t.norm_ratio is not None]
    errors = [t.mean_error for t in tensors if t.mean_error is not None]
    worst = (f"{max(found):.1e}" if found else "-" for found in (cosines, ratios, errors))
    return (stage.stage, *worst, "yes" if stage.passed else "no")
