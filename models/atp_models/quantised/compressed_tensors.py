"""The layouts of compressed-tensors, which llm-compressor writes.

Of a layer [out, in]:

- "pack-quantized", 4 bits in groups of g inputs: `weight_packed` int32 [out, in / 8], eight inputs
  to an int32 from the lowest bits on, each shifted by 8; `weight_scale` [out, in / g]; where it is
  not symmetric `weight_zero_point` int32 [out / 8, in / g], packed and shifted likewise; where
  groups are not of neighbours `weight_g_idx` [in].
- "int-quantized", 8 bits: `weight` int8 [out, in], `weight_scale` [out, 1], `input_scale` of one
  value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atp_models.quantised.gptq import group_order
from atp_models.quantised.modelopt import unpack_int8
from atp_models.quantised.packed_layer import (
    SCALES,
    Headers,
    PackedLayer,
    Pieces,
    groups_of,
    layers_with,
    nibbles,
    zeros_or_none,
)
from atp_models.quantised.refusals import unsupported
from atp_models.quantised.weight import QuantisedWeight

COMPRESSED_TENSORS = "compressed-tensors"
_PACKED, _INT8 = "pack-quantized", "int-quantized"
_SUPPORTED = (
    f"{_PACKED!r} with weights of 4 bits alone, in groups or per channel; {_INT8!r} with 8 bits, "
    "weights symmetric per channel, activations static, symmetric and per tensor"
)


def compressed_tensors_layers(
    where: object, config: Mapping[str, Any], headers: Headers
) -> Iterator[PackedLayer]:
    """The layers that lie in the format of compressed-tensors.

    Args:
        where: What to name in errors.
        config: `quantization_config`.
        headers: Of the stored tensors.

    Raises:
        InputError: Another format or scheme, or tensors that are not as documented.
    """
    stored = config.get("format")
    weights, activations = _scheme(where, config)
    if stored == _PACKED and activations is None and _is_int4(weights):
        group = weights.get("group_size") if weights.get("strategy") == "group" else -1
        for name in layers_with(headers, "weight_packed"):
            pieces = Pieces(headers, name, _PACKED)
            yield _int4_layer(pieces, group or -1, symmetric=weights.get("symmetric", True))
    elif stored == _INT8 and _is_int8(weights, "channel") and _is_int8(activations, "tensor"):
        for name in layers_with(headers, "weight_scale"):
            yield _int8_layer(Pieces(headers, name, _INT8))
    else:
        told = f"weights {_told(weights)}, activations {_told(activations)}"
        raise unsupported(where, f"compressed-tensors, {stored!r}, {told},", _SUPPORTED)


def _scheme(where: object, config: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """What becomes of weights and activations, the same in all layers."""
    groups = config.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    kinds = [(it.get("weights"), it.get("input_activations")) for it in schemes if _is_map(it)]
    same = len(kinds) == len(schemes) > 0 and all(kind == kinds[0] for kind in kinds)
    if not same or not isinstance(kinds[0][0], dict):
        raise unsupported(where, f"compressed-tensors with {len(schemes)} schemes", "a single one")
    sparsity = config.get("sparsity_config") or {}
    extra = {
        "transforms": (config.get("transform_config") or {}).get("config_groups"),
        "sparsity": sparsity.get("format", "dense") != "dense",
        "quantised outputs": any(scheme.get("output_activations") for scheme in schemes),
    }
    for name, present in extra.items():
        if present:
            raise unsupported(where, f"compressed-tensors with {name}", "none of these")
    return kinds[0]


def _is_map(value: object) -> bool:
    return isinstance(value, dict)


def _is_int4(weights: Mapping[str, Any]) -> bool:
    return (
        weights.get("num_bits") == 4
        and weights.get("type") == "int"
        and weights.get("strategy") in ("group", "channel")
    )


def _is_int8(scheme: Mapping[str, Any] | None, strategy: str) -> bool:
    return (
        scheme is not None
        and scheme.get("num_bits") == 8
        and scheme.get("type") == "int"
        and scheme.get("strategy") == strategy
        and scheme.get("symmetric", True) is True
        and not scheme.get("dynamic")
    )


def _told(scheme: Mapping[str, Any] | None) -> str:
    if scheme is None:
        return "as they are"
    dynamic = "dynamic " if scheme.get("dynamic") else ""
    shifted = "" if scheme.get("symmetric", True) else "asymmetric "
    kind = f"{scheme.get('type')}{scheme.get('num_bits')}"
    return f"{dynamic}{shifted}{kind} per {scheme.get('strategy')}"


def _int4_layer(pieces: Pieces, group: int, *, symmetric: bool) -> PackedLayer:
    outputs, columns = pieces.matrix("weight_packed")
    inputs = 8 * columns
    groups, size = groups_of(inputs, group, pieces)
    pieces.take("weight_packed", [(outputs, columns)], [torch.int32])
    pieces.take("weight_scale", [(outputs, groups)], SCALES)
    if not symmetric:
        pieces.take("weight_zero_point", [(-(-outputs // 8), groups)], [torch.int32])
    if "weight_g_idx" in pieces:
        pieces.take("weight_g_idx", [(inputs,)], [torch.int32, torch.int64])
    return PackedLayer(
        pieces.name,
        (outputs, inputs),
        4,
        size,
        False,
        COMPRESSED_TENSORS,
        pieces.file("weight_packed"),
        pieces.taken,
        partial(_unpack_int4, pieces.name),
    )


def _int8_layer(pieces: Pieces) -> PackedLayer:
    if "weight" not in pieces:
        raise pieces.refusal("no weight", "expected beside weight_scale")
    outputs, inputs = pieces.matrix("weight")
    pieces.take("weight", [(outputs, inputs)], [torch.int8])
    pieces.take("weight_scale", [(outputs, 1)], SCALES)
    pieces.take("input_scale", [(), (1,)], SCALES)
    return PackedLayer(
        pieces.name,
        (outputs, inputs),
        8,
        inputs,
        True,
        COMPRESSED_TENSORS,
        pieces.file("weight"),
        pieces.taken,
        unpack_int8,
    )


def _unpack_int4(layer: str, stored: Mapping[str, Tensor]) -> QuantisedWeight:
    values = nibbles(stored["weight_packed"]).t() - 8
    scales = stored["weight_scale"].t().contiguous()
    groups, zeros = stored.get("weight_g_idx"), stored.get("weight_zero_point")
    order = None if groups is None else group_order(groups, len(scales), layer)
    shifts = None
    if zeros is not None:
        shifts = zeros_or_none(nibbles(zeros.t())[:, : scales.shape[1]] - 8)
    return QuantisedWeight(
        bits=4,
        values=values.contiguous() if order is None else values[order],
        scales=scales,
        zeros=shifts,
        order=order,
    )
