"""A bundle as tables for people; `--json` prints its manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from atp_export.tables import layer_range, megabytes, pruning, table
from atp_runtime.manifest import Manifest, TensorSpec

_CACHE = re.compile(r"\.\d+\.(key|value)$")


def print_bundle(manifest: Manifest, console: Console) -> None:
    """Prints stages, shapes, sizes and origin of a bundle."""
    origin, vision = manifest.provenance, manifest.vision
    _say(
        console,
        f"{origin.model}: {manifest.precision}, {manifest.dialect} (opset {manifest.opset}), "
        f"{vision.tokens} visual tokens on a {vision.grid[0]} x {vision.grid[1]} grid\n",
    )
    for shown in (_stages(manifest), _tensors(manifest), _axes(manifest)):
        console.print(shown)
        console.print()
    _say(console, f"made by: {origin.command}")
    if origin.notice:
        _say(console, origin.notice, style="yellow")


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False)


def _stages(manifest: Manifest) -> Table:
    stages = table("stage", "layers", "bytes", "prunes after")
    for stage in manifest.stages:
        size = sum(manifest.files[name].bytes for name in (stage.graph, *stage.data))
        layers = stage.layers if stage.kind == "segment" else None
        stages.add_row(stage.name, layer_range(layers), megabytes(size), pruning(stage.pruning))
    total = megabytes(sum(record.bytes for record in manifest.files.values()))
    stages.add_row(f"{len(manifest.files)} files", "", total, "", style="bold")
    return stages


def _tensors(manifest: Manifest) -> Table:
    """Inputs and outputs, each once for all the stages that have it."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for stage in manifest.stages:
        for direction, specs in (("in", stage.inputs), ("out", stage.outputs)):
            for cells in dict.fromkeys(_cells(spec) for spec in specs):
                rows.setdefault((direction, *cells), []).append(stage.name)
    tensors = table("", "tensor", "shape", "dtype", "stages")
    for (direction, name, shape, dtype), names in sorted(rows.items()):
        tensors.add_row(direction, name, shape, dtype, _joined(names, manifest))
    return tensors


def _cells(spec: TensorSpec) -> tuple[str, str, str]:
    """A tensor's row; keys and values of all layers make one."""
    shape = ", ".join(str(size) for size in spec.shape)
    return _CACHE.sub(".{l}.key|value", spec.name), f"[{shape}]", spec.dtype


def _joined(names: Iterable[str], manifest: Manifest) -> str:
    segments = [stage.name for stage in manifest.segments]
    listed = list(names)
    if len(segments) > 1 and set(segments) <= set(listed):
        listed = ["all segments", *(name for name in listed if name not in segments)]
    return ", ".join(listed)


def _axes(manifest: Manifest) -> Table:
    axes = table("axis", "minimum", "typical", "maximum")
    for name, axis in manifest.axes.items():
        axes.add_row(name, str(axis.minimum), str(axis.typical), str(axis.maximum))
    return axes
