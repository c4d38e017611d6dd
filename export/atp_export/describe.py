"""Plans and bundles as tables for people; the same numbers go into `--json`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from atp_export.footprint import Footprint
from atp_export.plan import ExportPlan
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import Stage, TensorSpec


def megabytes(count: int) -> str:
    """Bytes as a short text, in powers of ten."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_plan(plan: ExportPlan, footprint: Footprint, console: Console) -> None:
    """Prints what an export would make and what it would need."""
    spec = plan.spec
    console.print(
        f"{spec.vision.family} {spec.vision.image_size[1]} px, {spec.vision.tokens} visual tokens; "
        f"decoder {spec.text.layers} layers of {spec.text.hidden}; "
        f"{plan.precision}, {plan.dialect}",
        highlight=False,
    )
    table = _table("stage", "layers", "weights", "prunes after")
    points = {segment.name: segment.pruning for segment in plan.segments}
    for stage in footprint.stages:
        point = points.get(stage.name)
        table.add_row(
            stage.name,
            _layers(stage.layers),
            megabytes(stage.weight_bytes),
            f"{point.rule}, before layer {point.before_layer}" if point else "",
        )
    table.add_row("embedding", "", megabytes(footprint.embedding_bytes), "")
    console.print(table)
    cache = footprint.cache_bytes_per_token / 1024
    console.print(
        f"bundle {megabytes(footprint.disk_bytes)}; caches {cache:.1f} KiB per token; "
        f"predicted peak memory: export {megabytes(footprint.export_peak)}, "
        f"engine build {megabytes(footprint.build_peak)}, run {megabytes(footprint.run_peak)}",
        highlight=False,
    )
    fits = _table("module", "builds engines", "runs")
    for fit in footprint.fits:
        fits.add_row(fit.module, _yes(fit.builds), _yes(fit.runs))
    console.print(fits)
    console.print("predictions by arithmetic; none was measured on a Jetson", style="dim")


def print_bundle(bundle: Bundle, console: Console) -> None:
    """Prints what a bundle holds."""
    manifest = bundle.manifest
    origin = manifest.provenance
    console.print(
        f"{origin.model}: {manifest.precision}, {manifest.dialect} (opset {manifest.opset}), "
        f"{manifest.vision.tokens} visual tokens on a "
        f"{manifest.vision.grid[0]} x {manifest.vision.grid[1]} grid",
        highlight=False,
    )
    table = _table("stage", "layers", "inputs", "outputs", "bytes", "prunes after")
    for stage in manifest.stages:
        point = stage.pruning
        size = sum(manifest.files[name].bytes for name in (stage.graph, *stage.data))
        table.add_row(
            stage.name,
            _layers(stage.layers if stage.kind == "segment" else None),
            _tensors(stage, stage.inputs),
            _tensors(stage, stage.outputs),
            megabytes(size),
            f"{point.rule}, before layer {point.before_layer}" if point else "",
        )
    console.print(table)
    total = sum(record.bytes for record in manifest.files.values())
    console.print(f"{len(manifest.files)} files, {megabytes(total)}", highlight=False)
    console.print(f"made by: {origin.command}", highlight=False, markup=False)
    if origin.notice:
        console.print(origin.notice, style="yellow", highlight=False)


def _tensors(stage: Stage, specs: tuple[TensorSpec, ...]) -> str:
    """Names and shapes, the caches of all layers folded into one line."""
    lines, caches = [], 0
    for spec in specs:
        if spec.name.startswith(("past_key_values.", "present.")):
            caches += 1
            if caches > 1:
                continue
            first, last = stage.layers
            name = spec.name.split(".")[0] + f".{first}..{last - 1}.key|value"
        else:
            name = spec.name
        lines.append(f"{name} [{', '.join(str(size) for size in spec.shape)}]".replace("[", r"\["))
    return "\n".join(lines)


def _layers(layers: tuple[int, int] | None) -> str:
    return f"{layers[0]} to {layers[1] - 1}" if layers else ""


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table
