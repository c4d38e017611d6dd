"""A plan as tables for people; the same numbers go into `--json`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from atp_export.footprint import Footprint
from atp_export.plan import ExportPlan
from atp_export.signatures import plan_signatures
from atp_export.structure_flops import structure_flops
from atp_export.tables import layer_range, megabytes, pruning, table
from atp_export.tensor_table import axis_table, tensor_table
from atp_runtime.manifest import VisionPruning
from atp_runtime.pruning_point import PruningPoint


def print_plan(plan: ExportPlan, footprint: Footprint, console: Console) -> None:
    """Prints what an export would make and what it would need."""
    text, vision = plan.spec.text, plan.spec.vision
    height, width = vision.image_size
    dialects, longest = " and ".join(plan.dialects), plan.axes["tokens"].maximum
    heads = f"{text.heads} heads ({text.kv_heads} of keys and values)"
    lines = (
        f"tower    {vision.family}, {width} x {height} pixels, {vision.tokens} visual tokens",
        f"decoder  {text.layers} layers of {text.hidden}, {heads}, vocabulary {text.vocabulary}",
        f"bundle   {plan.precision}, {dialects}, up to {longest} tokens",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    flops = structure_flops(plan)
    for line in flops.lines() if flops else ():
        console.print(line, highlight=False, soft_wrap=True)
    tensors, axes = tensor_table(plan_signatures(plan)), axis_table(plan.axes)
    for shown in (_stages(plan, footprint), tensors, axes, _memory(footprint), _fits(footprint)):
        console.print()
        console.print(shown)
    console.print("\npredictions by arithmetic; none was measured on a Jetson", style="dim")


def _stages(plan: ExportPlan, footprint: Footprint) -> Table:
    points: dict[str, PruningPoint | VisionPruning | None] = {
        segment.name: segment.pruning for segment in plan.segments
    }
    points["vision"] = plan.vision.pruning if plan.vision else None
    rows = [
        (s.name, layer_range(s.layers), megabytes(s.weight_bytes), pruning(points.get(s.name)))
        for s in footprint.stages
    ]
    rows.append(("embedding", "", megabytes(footprint.embedding_bytes), ""))
    rows.append(("in all", "", megabytes(footprint.disk_bytes), ""))
    return table(("stage", "layers", "weights", "then prunes"), rows, right=("weights",))


def _memory(footprint: Footprint) -> Table:
    rows = (
        ("export, without parity", megabytes(footprint.export_peak)),
        ("building the largest engine", megabytes(footprint.build_peak)),
        ("running", megabytes(footprint.run_peak)),
        ("  each token in the caches", f"{footprint.cache_bytes_per_token / 1024:.1f} KiB"),
    )
    return table(("peak memory of", "predicted"), rows, right=("predicted",))


def _fits(footprint: Footprint) -> Table:
    rows = [(fit.module, _yes(fit.builds), _yes(fit.runs)) for fit in footprint.fits]
    return table(("fits on", "to build engines", "to run"), rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
