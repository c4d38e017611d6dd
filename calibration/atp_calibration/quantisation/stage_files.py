"""Writes a stage in its new precision: one file of weights, and a graph of each dialect over it.

Weights are read, changed and written one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from atp_calibration.derived_bundle import DerivedBundle
from atp_calibration.quantisation.choice import INT4
from atp_calibration.quantisation.migration import Migration
from atp_calibration.quantisation.qdq import Form, insert_pairs
from atp_calibration.quantisation.stored_weights import pack, quantise_weight
from atp_calibration.quantisation.tensor_files import mapped
from atp_runtime.manifest import Stage

ALIGNMENT = 4096
"""Bytes: runtimes map weights, and a page is what they can map."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Stored:
    """A tensor in the file of weights."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.ceil(math.prod(self.shape) * float(self.dtype.itemsize))


@dataclass(frozen=True)
class _Entry:
    """Tensors that come of one weight, and what makes their values."""

    tensors: tuple[_Stored, ...]
    make: Callable[[], tuple[Array, ...]]


def write_stage(
    new: DerivedBundle, stage: Stage, forms: Mapping[str, Form], migration: Migration, made_of: str
) -> None:
    """Writes the files of a stage, unless a former run has.

    Args:
        new: Where to.
        stage: As the source has it.
        forms: Of the layers that become another precision, by name.
        migration: What goes from activations to weights.
        made_of: Tells these choices from others.
    """
    graphs = (stage.graph, *stage.other_graphs.values())
    models = {name: ir.load(new.source.path(name)) for name in graphs}
    data = own_file(stage)
    weights = _weights(list(models.values()), Path(data).name, forms)
    entries = [_entry(name, value, forms, migration) for name, value in weights.items()]
    places = _place(entries)
    for other in stage.data:
        if other != data:
            new.keep_file(other)
    new.replace_file(data, lambda path: _write(path, entries, places), made_of=made_of)
    location = Path(data).name
    for name, model in models.items():
        _refer(model, forms, places, location)

        def write(path: Path, model: ir.Model = model) -> None:
            path.write_bytes(ir.serde.serialize_model(model).SerializeToString())
            onnx.checker.check_model(str(path), full_check=True)

        new.replace_file(name, write, made_of=made_of)


def own_file(stage: Stage) -> str:
    """The file with a stage's weights, apart from the token table that a tied head reads, too."""
    return stage.data[0]


def _weights(
    models: Sequence[ir.Model], own: str, forms: Mapping[str, Form]
) -> dict[str, ir.ExternalTensor]:
    """What will lie in the stage's own file, by name: what does, and what is quantised."""
    found: dict[str, ir.ExternalTensor] = {}
    for model in models:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                found.setdefault(str(value.name), value.const_value)
    return {
        name: tensor
        for name, tensor in sorted(found.items(), key=lambda item: item[1].offset or 0)
        if str(tensor.location) == own or name in forms
    }


def _entry(
    name: str, tensor: ir.ExternalTensor, forms: Mapping[str, Form], migration: Migration
) -> _Entry:
    dtype, shape = tensor.dtype, tuple(int(length) for length in tensor.shape)
    form = forms.get(name)
    if form is None:
        kind = dtype.numpy()
        return _Entry(
            (_Stored(name, dtype, shape),),
            lambda: (migration.applied(name, mapped(tensor)).astype(kind),),
        )
    inputs, outputs = shape = shape[::-1] if form.transposed else shape
    blocks = (inputs // form.block_size, outputs) if form.precision == INT4 else (outputs,)
    kind = ir.DataType.INT4 if form.precision == INT4 else ir.DataType.INT8
    stored = _Stored(f"{name}.{form.precision}", kind, shape)
    return _Entry(
        (stored, _Stored(f"{name}.scale", dtype, blocks)),
        lambda: _numbers(migration, name, tensor, form),
    )


def _numbers(
    migration: Migration, name: str, tensor: ir.ExternalTensor, form: Form
) -> tuple[Array, Array]:
    stored = mapped(tensor)
    weight = migration.applied(name, stored.T if form.transposed else stored)
    kind = tensor.dtype.numpy()
    if form.precision == INT4:
        rounding = migration.int4_rounding(name, form.block_size)
        values, scales = rounding.round(weight, feedback=form.feedback)
        return pack(values), scales.astype(kind)
    values, scales = quantise_weight(weight)
    return values, scales.astype(kind)


def _place(entries: Sequence[_Entry]) -> dict[str, tuple[_Stored, int]]:
    """Each tensor with its offset in bytes, by name."""
    places, end = {}, 0
    for tensor in (tensor for entry in entries for tensor in entry.tensors):
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        places[tensor.name] = tensor, offset
        end = offset + tensor.nbytes
    return places


def _write(
    path: Path, entries: Sequence[_Entry], places: Mapping[str, tuple[_Stored, int]]
) -> None:
    with path.open("wb") as file:
        for entry in entries:
            for tensor, values in zip(entry.tensors, entry.make(), strict=True):
                file.write(bytes(places[tensor.name][1] - file.tell()))
                file.write(np.ascontiguousarray(values).data)


def _refer(
    model: ir.Model,
    forms: Mapping[str, Form],
    places: Mapping[str, tuple[_Stored, int]],
    location: str,
) -> None:
    """Makes a graph use the new file."""

    def external(name: str) -> ir.ExternalTensor:
        stored, offset = places[name]
        shape = ir.Shape(stored.shape)
        return ir.ExternalTensor(
            location, offset, stored.nbytes, stored.dtype, shape=shape, name=name
        )

    insert_pairs(model, forms, external)
    for value in model.graph.initializers.values():
        if str(value.name) in places:
            value.const_value = external(str(value.name))
