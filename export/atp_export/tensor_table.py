"""The inputs and outputs of a bundle's stages, and the ranges of their axes, as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.table import Table

from atp_export.tables import table
from atp_runtime.manifest import AxisRange, TensorSpec

_CACHE = re.compile(r"\.\d+\.(key|value)$")


class Signed(Protocol):
    """A stage of a manifest, or the signature of one that is planned."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What it takes."""
        ...

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What it gives."""
        ...


def tensor_table(stages: Mapping[str, Signed]) -> Table:
    """Inputs and outputs, each once for all the stages that have it, caches once for all layers.

    Args:
        stages: By name, in the order they run.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for name, stage in stages.items():
        for direction, specs in (("in", stage.inputs), ("out", stage.outputs)):
            for cells in dict.fromkeys(_cells(spec) for spec in specs):
                found.setdefault((direction, *cells), []).append(name)
    rows = [(*cells, _joined(names, list(stages))) for cells, names in sorted(found.items())]
    return table(("", "tensor", "shape", "dtype", "stages"), rows, wrapped=("stages",))


def _cells(spec: TensorSpec) -> tuple[str, str, str]:
    shape = ", ".join(str(size) for size in spec.shape)
    return _CACHE.sub(".{l}.key|value", spec.name), f"[{shape}]", spec.dtype


def _joined(names: list[str], order: list[str]) -> str:
    """Names of stages, of several segments that follow one another as `segment_0..3`."""
    segments = [name for name in names if name.startswith("segment_")]
    if len(segments) < 3 or order.index(segments[-1]) - order.index(segments[0]) >= len(segments):
        return ", ".join(names)
    others = [name for name in names if name not in segments]
    run = f"{segments[0]}..{segments[-1].removeprefix('segment_')}"
    return " and ".join([run, *others])


def axis_table(axes: Mapping[str, AxisRange]) -> Table:
    """The ranges of the named axes."""
    columns = ("axis", "minimum", "typical", "maximum")
    rows = [(name, *map(str, (a.minimum, a.typical, a.maximum))) for name, a in axes.items()]
    return table(columns, rows, right=columns[1:])
