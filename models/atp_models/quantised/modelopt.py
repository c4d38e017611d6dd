"""NVIDIA ModelOpt's unified Hugging Face export: INT4 AWQ, INT8 SmoothQuant, INT8 weights alone.

Of a layer [out, in]:

- W4A16_AWQ: `weight` uint8 [out / 2, in], two outputs to a byte, the even one in its lower half,
  each -8 to 7; `weight_scale` [out, in / g].
- W8A8_SQ_PER_CHANNEL: `weight` int8 [out, in], `weight_scale` [out], `input_scale` of one value.
- W8A16: the same without `input_scale`.

`pre_quant_scale` [in], where it is there, multiplies the input first; elsewhere ModelOpt has put it
into the norm or the layer before. Scales are largest magnitudes over 7 or 127, nothing is shifted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from atp_models.quantised.packed_layer import (
    SCALES,
    Headers,
    PackedLayer,
    Pieces,
    groups_of,
    layers_with,
    nibbles,
)
from atp_models.quantised.refusals import unsupported
from atp_models.quantised.weight import QuantisedWeight

MODELOPT = "modelopt"
_INT4, _INT8, _INT8_WEIGHTS = "W4A16_AWQ", "W8A8_SQ_PER_CHANNEL", "W8A16"
_SUPPORTED = f"{_INT4}, {_INT8} and {_INT8_WEIGHTS}"


def modelopt_layers(
    where: object, config: Mapping[str, Any], headers: Headers
) -> Iterator[PackedLayer]:
    """The layers that ModelOpt has quantised.

    Args:
        where: What to name in errors.
        config: `quantization_config`, or `quantization` of `hf_quant_config.json`.
        headers: Of the stored tensors.

    Raises:
        InputError: Another algorithm, or tensors that are not as documented.
    """
    algorithm = config.get("quant_algo")
    if algorithm not in (_INT4, _INT8, _INT8_WEIGHTS) or config.get("has_zero_point"):
        shifted = " with zero points" if config.get("has_zero_point") else ""
        raise unsupported(where, f"ModelOpt's {algorithm}{shifted}", _SUPPORTED)
    for name in layers_with(headers, "weight_scale"):
        pieces = Pieces(headers, name, f"ModelOpt's {algorithm}")
        if "weight" not in pieces:
            raise pieces.refusal("no weight", "expected beside weight_scale")
        if algorithm == _INT4:
            yield _int4_layer(pieces, config.get("group_size"))
        else:
            yield _int8_layer(pieces, activations=algorithm == _INT8)


def _int4_layer(pieces: Pieces, group: int | None) -> PackedLayer:
    halves, inputs = pieces.matrix("weight")
    outputs = 2 * halves
    if group is None:  # not in config.json
        group = inputs // max(1, pieces.shape("weight_scale")[-1])
    groups, size = groups_of(inputs, group, pieces)
    pieces.take("weight", [(halves, inputs)], [torch.uint8])
    pieces.take("weight_scale", [(outputs, groups)], SCALES)
    _take_multiplier(pieces, inputs)
    return PackedLayer(
        pieces.name,
        (outputs, inputs),
        4,
        size,
        False,
        MODELOPT,
        pieces.file("weight"),
        pieces.taken,
        _unpack_int4,
    )


def _int8_layer(pieces: Pieces, *, activations: bool) -> PackedLayer:
    outputs, inputs = pieces.matrix("weight")
    pieces.take("weight", [(outputs, inputs)], [torch.int8])
    pieces.take("weight_scale", [(outputs,), (outputs, 1)], SCALES)
    if activations:
        pieces.take("input_scale", [(), (1,)], SCALES)
    _take_multiplier(pieces, inputs)
    return PackedLayer(
        pieces.name,
        (outputs, inputs),
        8,
        inputs,
        activations,
        MODELOPT,
        pieces.file("weight"),
        pieces.taken,
        unpack_int8,
    )


def _take_multiplier(pieces: Pieces, inputs: int) -> None:
    if "pre_quant_scale" in pieces:
        pieces.take("pre_quant_scale", [(inputs,), (1, inputs)], SCALES)


def _unpack_int4(stored: Mapping[str, Tensor]) -> QuantisedWeight:
    outer = nibbles(stored["weight"].t())  # two's complement
    return QuantisedWeight(
        bits=4,
        values=(outer ^ 8) - 8,
        scales=stored["weight_scale"].t().contiguous(),
        multiplier=_multiplier(stored),
    )


def unpack_int8(stored: Mapping[str, Tensor]) -> QuantisedWeight:
    """The common form of an int8 `weight` [out, in] with a scale per output."""
    step = stored.get("input_scale")
    return QuantisedWeight(
        bits=8,
        values=stored["weight"].t().contiguous(),
        scales=stored["weight_scale"].reshape(1, -1),
        multiplier=_multiplier(stored),
        activation_scale=None if step is None else float(step),
    )


def _multiplier(stored: Mapping[str, Tensor]) -> Tensor | None:
    found = stored.get("pre_quant_scale")
    return None if found is None else found.reshape(-1)
