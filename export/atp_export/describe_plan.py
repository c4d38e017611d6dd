"""A plan as tables for people; the same numbers go into `--json`."""

from __future__ import annotations

from rich.console import Console

from atp_export.footprint import Footprint
from atp_export.plan import ExportPlan
from atp_export.tables import layer_range, megabytes, pruning, table


def print_plan(plan: ExportPlan, footprint: Footprint, console: Console) -> None:
    """Prints what an export would make and what it would need."""
    spec = plan.spec
    console.print(
        f"{spec.vision.family} {spec.vision.image_size[1]} x {spec.vision.image_size[0]} px, "
        f"{spec.vision.tokens} visual tokens; "
        f"decoder {spec.text.layers} layers of {spec.text.hidden}; "
        f"{plan.precision}, {plan.dialect}\n",
        highlight=False,
    )
    _print_stages(plan, footprint, console)
    _print_memory(footprint, console)
    console.print("\npredictions by arithmetic; none was measured on a Jetson", style="dim")


def _print_stages(plan: ExportPlan, footprint: Footprint, console: Console) -> None:
    stages = table("stage", "layers", "weights", "prunes after")
    points = {segment.name: segment.pruning for segment in plan.segments}
    for stage in footprint.stages:
        size = megabytes(stage.weight_bytes)
        stages.add_row(stage.name, layer_range(stage.layers), size, pruning(points.get(stage.name)))
    stages.add_row("embedding", "", megabytes(footprint.embedding_bytes), "")
    stages.add_row("bundle", "", megabytes(footprint.disk_bytes), "", style="bold")
    console.print(stages)


def _print_memory(footprint: Footprint, console: Console) -> None:
    memory = table("predicted peak memory", "")
    memory.add_row("export", megabytes(footprint.export_peak))
    memory.add_row("building engines", megabytes(footprint.build_peak))
    memory.add_row("running", megabytes(footprint.run_peak))
    memory.add_row("  of it caches, per token", f"{footprint.cache_bytes_per_token / 1024:.1f} KiB")
    console.print("", memory, "", sep="\n")
    fits = table("module", "builds engines", "runs")
    for fit in footprint.fits:
        fits.add_row(fit.module, _yes(fit.builds), _yes(fit.runs))
    console.print(fits)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
