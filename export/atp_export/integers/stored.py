"""Keeps the integers of a quantised checkpoint: they take the place of a stage's float weights.

The graph gets the form that `atp-calibrate` writes: symmetric, as TensorRT demands. What else other
tools do goes around it, exactly:

- Zero points. A row of a block is (q - z) s = q s - z s, and z s is the same for all rows of the
  block, so the layer is x Q + mean(x) C: Q the symmetric weight, mean(x) the mean of each block of
  the input, C = -z s n for blocks of n. C is n times smaller than the weight.
- Groups of inputs that are no neighbours (GPTQ's `desc_act`): the input is gathered in their order.
- Scales on the input (ModelOpt's `pre_quant_scale`): the input is multiplied by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import onnx_ir as ir
import torch
from torch import Tensor

from atp_calibration.quantisation.choice import INT4, INT8
from atp_calibration.quantisation.linear_layers import PARTS, linear_layers
from atp_calibration.quantisation.qdq import Form
from atp_calibration.quantisation.stored_weights import LARGEST_INT8, pack
from atp_export.stage_graph import StageGraph, StageWeight
from atp_export.weights import TensorSource, attach, converted
from atp_models.checkpoint import Checkpoint
from atp_models.quantised import PackedLayer, QuantisedWeight
from atp_runtime.manifest import Quantisation

SCALE, SHIFT, ORDER, MULTIPLIER = "scale", "shift", "order", "multiplier"
_BLOCKS = (128, 64, 32)
"""The largest that divides all groups is taken: runtimes have kernels for these, not for any."""


@dataclass(frozen=True)
class StoredLayer:
    """A linear layer of a stage whose weight stays integers.

    Attributes:
        weight: The float weight whose place they take.
        form: How the layer computes.
        shape: Of the integers, [in, out].
        pieces: What is stored for it, by kind: "int4" or "int8", and "scale"; "shift" where there
            are zero points, "order" where its inputs have another, "multiplier" where they are
            scaled. INT4 is a vector of bytes here.
    """

    weight: StageWeight
    form: Form
    shape: tuple[int, int]
    pieces: Mapping[str, StageWeight]


class StageIntegers:
    """The quantised layers of a stage.

    Args:
        source: Reads the checkpoint.
        graph: The stage, in any dialect.

    Attributes:
        layers: Those that stay integers, by their weights' names.
    """

    def __init__(self, source: TensorSource, graph: StageGraph) -> None:
        self._source = source
        self._block = block_size(source.checkpoint)
        # The weight just written is asked for once for each of its pieces.
        self._read = lru_cache(maxsize=1)(source.checkpoint.read_quantised)
        self._vectors: dict[tuple[str, bytes], StageWeight] = {}
        self.layers = {layer.weight.name: layer for layer in self._find(graph)}
        self._pieces = {
            piece: (kind, layer)
            for layer in self.layers.values()
            for kind, piece in layer.pieces.items()
        }

    def _find(self, graph: StageGraph) -> Iterator[StoredLayer]:
        quantised = self._source.checkpoint.quantised
        if not any(weight.source in quantised for weight in graph.weights):
            return
        model = attach(graph, [("", 0)] * len(graph.weights))
        linear = {layer.name for layer in linear_layers(model, frozenset(PARTS))}
        for weight in graph.weights:
            if weight.source in quantised and weight.name in linear:
                yield self._stored(weight, self._read(weight.source))

    def _stored(self, weight: StageWeight, quantised: QuantisedWeight) -> StoredLayer:
        inputs = len(quantised.values)
        outputs = weight.shape[1] if weight.transposed else weight.shape[0]
        kind = INT4 if quantised.bits == 4 else INT8
        step, blocked = quantised.activation_scale, kind == INT4
        blocks = inputs // self._block if blocked else 1

        def piece(what: str, shape: tuple[int, ...], dtype: torch.dtype) -> StageWeight:
            name, row = f"{weight.name}.{what}", weight.first_row
            return StageWeight(name, weight.source, shape, dtype, transposed=False, first_row=row)

        packed = (math.ceil(inputs * outputs / 2),)
        pieces = {
            kind: piece(kind, packed, torch.uint8)
            if blocked
            else piece(kind, (inputs, outputs), torch.int8),
            SCALE: piece(SCALE, (blocks, outputs) if blocked else (outputs,), weight.dtype),
        }
        if quantised.zeros is not None:
            pieces[SHIFT] = piece(SHIFT, (blocks, outputs), weight.dtype)
        vectors = {ORDER: quantised.order, MULTIPLIER: quantised.multiplier}
        for what, vector in vectors.items():
            if vector is not None:
                dtype = torch.int64 if what == ORDER else weight.dtype
                # Layers that read the same value have equal ones, and share what is made with them.
                made = piece(what, (inputs,), dtype)
                key = (what, vector.view(torch.uint8).numpy().tobytes())
                pieces[what] = self._vectors.setdefault(key, made)
        threshold = None if step is None else step * LARGEST_INT8
        form = Form(kind, threshold, self._block if blocked else 0)
        return StoredLayer(weight, form, (inputs, outputs), pieces)

    def in_place(self, weights: Iterable[StageWeight]) -> list[StageWeight]:
        """The weights to write, each once: the pieces where a layer has them."""
        layers = self.layers
        stored = (
            layers[weight.name].pieces.values() if weight.name in layers else [weight]
            for weight in weights
        )
        return list(dict.fromkeys(chain.from_iterable(stored)))

    def read(self, weight: StageWeight, into: Tensor) -> None:
        """Writes a weight, or a piece of one, into a tensor, see `TensorSource.read`.

        Raises:
            CheckFailedError: It holds NaN or infinity, in the checkpoint or after conversion.
        """
        if weight not in self._pieces:
            self._source.read(weight, into)
            return
        kind, layer = self._pieces[weight]
        made = self._make(kind, layer, self._read(weight.source))
        into.copy_(converted(weight, made))

    def _make(self, kind: str, layer: StoredLayer, quantised: QuantisedWeight) -> Tensor:
        inputs, first = len(quantised.values), layer.weight.first_row
        last = first + layer.shape[1]
        if kind in (INT4, INT8):
            values = quantised.values[:, first:last]
            return values if kind == INT8 else torch.from_numpy(pack(values.numpy()))
        if kind in (ORDER, MULTIPLIER):
            found = quantised.order if kind == ORDER else quantised.multiplier
            assert found is not None  # noqa: S101 - as `_stored` found it
            return found
        scales = quantised.scales[:, first:last].float()
        if kind == SHIFT:
            assert quantised.zeros is not None  # noqa: S101 - as `_stored` found it
            scales = scales * quantised.zeros[:, first:last] * -self._block
        if quantised.bits == 8:
            return scales[0]
        return scales.repeat_interleave(inputs // len(scales) // self._block, dim=0)


def block_size(checkpoint: Checkpoint) -> int:
    """Inputs that share a scale in the graphs of an INT4 checkpoint.

    Larger groups are written as several blocks with the same scale: the same numbers.
    """
    groups = [layer.group for layer in checkpoint.quantised.values()]
    common = math.gcd(*groups)
    return next((block for block in _BLOCKS if common % block == 0), common)


def stored_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, int]:
    """What layers that stay integers take in a bundle, by the names of their weights.

    From the headers, which do not tell whether all zero points are the middle: the products that
    others need are counted where the tool can have them.
    """
    block = block_size(checkpoint)
    found = {}
    for name, layer in checkpoint.quantised.items():
        outputs, inputs = layer.shape
        values = math.ceil(inputs * outputs * layer.bits / 8)
        scales = outputs * dtype.itemsize * (inputs // block if layer.bits == 4 else 1)
        shifted = any("zero" in short for short in layer.tensors)
        found[name] = values + scales * (2 if shifted else 1)
    return found


def describe(layers: Mapping[str, PackedLayer], block: int, count: int) -> Quantisation:
    """What the manifest says of them.

    Args:
        layers: Of the checkpoint.
        block: See `block_size`.
        count: How many of them are in the bundle.
    """
    one = next(iter(layers.values()))
    return Quantisation(
        weights=INT4 if one.bits == 4 else INT8,
        activations=INT8 if one.activations else None,
        block_size=block if one.bits == 4 else None,
        layers=count,
        tool=one.tool,
    )


def count_kept(graph: ir.Model) -> int:
    """How many layers of a stage's graph have weights of integers."""
    return sum(str(name).endswith((f".{INT4}", f".{INT8}")) for name in graph.graph.initializers)
