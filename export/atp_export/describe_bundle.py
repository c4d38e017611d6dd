"""A bundle as tables for people; `--json` prints its manifest."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from atp_export.tables import layer_range, megabytes, pruning, table
from atp_export.tensor_table import axis_table, tensor_table
from atp_runtime.manifest import Manifest


def print_bundle(manifest: Manifest, console: Console) -> None:
    """Prints stages, shapes, sizes and origin of a bundle."""
    origin, vision = manifest.provenance, manifest.vision
    _say(
        console,
        f"{origin.model}: {manifest.precision}, {_dialects(manifest)}, "
        f"{vision.tokens} visual tokens on a {vision.grid[0]} x {vision.grid[1]} grid\n",
    )
    tensors = tensor_table({stage.name: stage for stage in manifest.stages})
    for shown in (_stages(manifest), tensors, axis_table(manifest.axes)):
        console.print(shown)
        console.print()
    _say(console, f"made by: {origin.command}")
    if origin.notice:
        _say(console, origin.notice, style="yellow")


def _dialects(manifest: Manifest) -> str:
    opsets = {manifest.dialect: manifest.opset, **manifest.other_dialects}
    return " and ".join(f"{name} (opset {opset})" for name, opset in opsets.items())


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _stages(manifest: Manifest) -> Table:
    rows = []
    for stage in manifest.stages:
        files = (stage.graph, *stage.other_graphs.values(), *stage.data)
        size = sum(manifest.files[name].bytes for name in files)
        layers = layer_range(stage.layers if stage.kind == "segment" else None)
        behind = manifest.vision.pruning if stage.kind == "vision" else stage.pruning
        rows.append((stage.name, layers, megabytes(size), pruning(behind)))
    total = megabytes(sum(record.bytes for record in manifest.files.values()))
    rows.append((f"all {len(manifest.files)} files", "", total, ""))
    return table(("stage", "layers", "size", "then prunes"), rows, right=("size",))
