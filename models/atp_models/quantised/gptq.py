"""The layout of AutoGPTQ and GPTQModel (arXiv 2210.17323).

Of a layer [out, in], 4 bits, groups of g inputs: `qweight` int32 [in / 8, out], eight inputs to an
int32 from the lowest bits on; `qzeros` int32 [in / g, out / 8]; `scales` [in / g, out]; `g_idx`
int32 [in], each input's group. The weight is (qweight - zeros) * scales of its group. The format
"gptq" stores zeros less one, each int32 minus 0x11111111; "gptq_v2" stores them as they are. With
`desc_act` groups are not of neighbours: `g_idx` says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
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
    zeros_or_none,
)
from atp_models.quantised.refusals import misshapen, unsupported
from atp_models.quantised.weight import QuantisedWeight

GPTQ = "gptq"
_ONES = 0x11111111
_FORMATS = ("gptq", "gptq_v2")
_SUPPORTED = "4 bits in the formats 'gptq' and 'gptq_v2'"
_ADDED = ("adapter", "rotation")


def gptq_layers(
    where: object, config: Mapping[str, Any], headers: Headers
) -> Iterator[PackedLayer]:
    """The layers that AutoGPTQ or GPTQModel has quantised.

    Args:
        where: What to name in errors.
        config: `quantization_config`.
        headers: Of the stored tensors.

    Raises:
        InputError: Another format, other bits, or tensors that are not as documented.
    """
    stored = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    stored = "marlin" if config.get("is_marlin_format") else stored
    bits, group = config.get("bits"), config.get("group_size")
    if stored not in _FORMATS:
        raise unsupported(where, f"GPTQ in the format {stored!r}", _SUPPORTED)
    if bits != 4 or not isinstance(group, int):
        raise unsupported(where, f"GPTQ with {bits} bits in groups of {group}", _SUPPORTED)
    for field in _ADDED:
        if config.get(field):
            raise unsupported(where, f"GPTQ with {field} {config[field]!r}", "none")
    for name in layers_with(headers, "qweight"):
        yield _layer(Pieces(headers, name, f"the format {stored}"), group, stored == "gptq")


def group_order(groups: Tensor, count: int, layer: str) -> Tensor | None:
    """The inputs group after group, int64 [in]; None where they lie so already.

    Args:
        groups: Of each input, [in].
        count: How many groups there are.
        layer: To name in errors.

    Raises:
        InputError: The groups are not of equal size.
    """
    sizes = torch.bincount(groups.long().clamp(min=-1) + 1, minlength=count + 1)
    if len(sizes) > count + 1 or bool((sizes[1:] * count != len(groups)).any()):
        raise misshapen(
            f"layer {layer}",
            f"g_idx has groups of {sizes.min()} to {sizes.max()} inputs",
            f"expected {count} groups of {len(groups) // count}: blocks of inputs share a scale",
        )
    order = torch.argsort(groups, stable=True)
    return None if bool((order[1:] > order[:-1]).all()) else order


def _layer(pieces: Pieces, group: int, less_one: bool) -> PackedLayer:
    rows, outputs = pieces.matrix("qweight")
    inputs = 8 * rows
    groups, size = groups_of(inputs, group, pieces)
    pieces.take("qweight", [(rows, outputs)], [torch.int32])
    pieces.take("qzeros", [(groups, outputs // 8)], [torch.int32])
    pieces.take("scales", [(groups, outputs)], SCALES)
    pieces.take("g_idx", [(inputs,)], [torch.int32, torch.int64])
    return PackedLayer(
        pieces.name,
        (outputs, inputs),
        4,
        size,
        False,
        GPTQ,
        pieces.file("qweight"),
        pieces.taken,
        partial(_unpack, pieces.name, less_one),
    )


def _unpack(layer: str, less_one: bool, stored: Mapping[str, Tensor]) -> QuantisedWeight:
    values = nibbles(stored["qweight"].t()).t() - 8
    order = group_order(stored["g_idx"], len(stored["scales"]), layer)
    # As whole numbers: what was subtracted may have borrowed from the next zero.
    packed = stored["qzeros"] + _ONES if less_one else stored["qzeros"]
    return QuantisedWeight(
        bits=4,
        values=values.contiguous() if order is None else values[order],
        scales=stored["scales"],
        zeros=zeros_or_none(nibbles(packed) - 8),
        order=order,
    )
