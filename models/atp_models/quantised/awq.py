"""AutoAWQ's layout "gemm" (arXiv 2306.00978).

Of a layer [out, in], 4 bits, groups of g inputs: `qweight` int32 [in, out / 8], `qzeros` int32
[in / g, out / 8], `scales` [in / g, out]. The eight columns of an int32 lie in it as
0, 2, 4, 6, 1, 3, 5, 7, from the lowest bits on. The weight is (qweight - qzeros) * scales.
AWQ's own scales are in the weights and in the layers before already.
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
    zeros_or_none,
)
from atp_models.quantised.refusals import unsupported
from atp_models.quantised.weight import QuantisedWeight

AWQ = "awq"
_SUPPORTED = "AutoAWQ's version 'gemm' with 4 bits"
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of columns 0 to 7 in an int32


def awq_layers(where: object, config: Mapping[str, Any], headers: Headers) -> Iterator[PackedLayer]:
    """The layers that AutoAWQ has quantised.

    Args:
        where: What to name in errors.
        config: `quantization_config`.
        headers: Of the stored tensors.

    Raises:
        InputError: Another version, other bits, or tensors that are not as documented.
    """
    version = str(config.get("version") or config.get("format") or "gemm").lower()
    bits = config.get("bits", config.get("w_bit"))
    group = config.get("group_size", config.get("q_group_size"))
    if version != "gemm" or config.get("backend") == "llm-awq":
        tool = "llm-awq" if config.get("backend") == "llm-awq" else f"version {version!r}"
        raise unsupported(where, f"AWQ, {tool},", _SUPPORTED)
    if bits != 4 or not isinstance(group, int):
        raise unsupported(where, f"AWQ with {bits} bits in groups of {group}", _SUPPORTED)
    for name in layers_with(headers, "qweight"):
        yield _layer(Pieces(headers, name, "AutoAWQ's gemm"), group)


def _layer(pieces: Pieces, group: int) -> PackedLayer:
    inputs, columns = pieces.matrix("qweight")
    outputs = 8 * columns
    groups, size = groups_of(inputs, group, pieces)
    pieces.take("qweight", [(inputs, columns)], [torch.int32])
    pieces.take("qzeros", [(groups, columns)], [torch.int32])
    pieces.take("scales", [(groups, outputs)], SCALES)
    return PackedLayer(
        pieces.name,
        (outputs, inputs),
        4,
        size,
        False,
        AWQ,
        pieces.file("qweight"),
        pieces.taken,
        _unpack,
    )


def _unpack(stored: Mapping[str, Tensor]) -> QuantisedWeight:
    return QuantisedWeight(
        bits=4,
        values=_columns(stored["qweight"]),
        scales=stored["scales"],
        zeros=zeros_or_none(_columns(stored["qzeros"])),
    )


def _columns(packed: Tensor) -> Tensor:
    """int32 [rows, out / 8] as int8 [rows, out] of -8 to 7."""
    eights = nibbles(packed).view(len(packed), -1, 8)
    return eights[..., list(_PLACES)].flatten(1) - 8
