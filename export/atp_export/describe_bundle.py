"""A bundle as tables for people; `--json` prints its manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _stages(manifest: Manifest) -> Table:
    rows = []
    for stage in manifest.stages:
        size = sum(manifest.files[name].bytes for name in (stage.graph, *stage.data))
        layers = layer_range(stage.layers if stage.kind == "segment" else None)
        rows.append((stage.name, layers, megabytes(size), pruning(stage.pruning)))
    total = megabytes(sum(record.bytes for record in manifest.files.values()))
    rows.append((f"all {len(manifest.files)} files", "", total, ""))
    return table(("stage", "layers", "size", "then prunes"), rows, right=("size",))


def _tensors(manifest: Manifest) -> Table:
    """Inputs and outputs, each once for all the stages that have it."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number, stage in enumerate(manifest.stages):
        for direction, specs in (("in", stage.inputs), ("out", stage.outputs)):
            for cells in dict.fromkeys(_cells(spec) for spec in specs):
                found.setdefault((direction, *cells), []).append(number)
    rows = [(*cells, _joined(numbers, manifest)) for cells, numbers in sorted(found.items())]
    return table(("", "tensor", "shape", "dtype", "stages"), rows, wrapped=("stages",))


def _cells(spec: TensorSpec) -> tuple[str, str, str]:
    """A tensor's row; keys and values of all layers make one."""
    shape = ", ".join(str(size) for size in spec.shape)
    return _CACHE.sub(".{l}.key|value", spec.name), f"[{shape}]", spec.dtype


def _joined(numbers: Sequence[int], manifest: Manifest) -> str:
    """Names of stages, of several that follow one another as `segment_0..3`."""
    names = [manifest.stages[number].name for number in numbers]
    if len(names) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{names[0]}..{names[-1].removeprefix('segment_')}"
    return ", ".join(names)


def _axes(manifest: Manifest) -> Table:
    columns = ("axis", "minimum", "typical", "maximum")
    axes = manifest.axes.items()
    rows = [(name, str(a.minimum), str(a.typical), str(a.maximum)) for name, a in axes]
    return table(columns, rows, right=columns[1:])
