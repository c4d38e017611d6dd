"""Packs weights as other tools do, written from their documentation with integers alone.

Each packer takes a weight [out, in] and gives the tensors of its layer and what they stand for:
the weight in float64, and the step of its input where that is INT8.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Array = npt.NDArray[Any]
DECODER = re.compile(r"language_model\..*_proj\.weight")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Packed:
    tensors: dict[str, Array]
    stands_for: Array
    step: Array | float | None = None


Packer = Callable[[Array], Packed]


@dataclass(frozen=True)
class Tool:
    """A way to quantise: what config.json says, and the packer."""

    config: Mapping[str, Any]
    pack: Packer
    weights: str = "int4"
    file: str = "config.json"


def rounded(
    weight: Array, group: int, *, symmetric: bool, order: Array | None = None
) -> tuple[Array, Array, Array]:
    """q of 0 to 15 [in, out], zeros [groups, out] and FP16 scales [groups, out].

    Groups are of neighbours in `order`; q is in the weight's own order.
    """
    rows = weight.T if order is None else weight.T[order]
    inputs, outputs = rows.shape
    blocks = rows.reshape(inputs // group, group, outputs).astype(np.float64)
    if symmetric:
        scales = (np.abs(blocks).max(1) / 7.5).astype(np.float16)
        zeros = np.full(scales.shape, 8)
    else:
        low, high = np.minimum(blocks.min(1), 0), np.maximum(blocks.max(1), 0)
        scales = ((high - low) / 15).astype(np.float16)
        zeros = np.clip(np.rint(-low / scales.astype(np.float64)), 0, 15).astype(np.int64)
    q = np.rint(blocks / scales.astype(np.float64)[:, None]) + zeros[:, None]
    q = np.clip(q, 0, 15).astype(np.int64).reshape(inputs, outputs)
    if order is not None:
        unordered = np.empty_like(q)
        unordered[order] = q
        q = unordered
    return q, zeros, scales


def restored(q: Array, zeros: Array, scales: Array, groups: Array) -> Array:
    """(q - z) s of each input's group: float64 [out, in]."""
    return ((q - zeros[groups]) * scales.astype(np.float64)[groups]).T


def int32_of(nibbles: Array, places: tuple[int, ...] = tuple(range(8))) -> Array:
    """int32 [..., n / 8] of 4-bit numbers [..., n]: the lowest bits hold column `places[0]`."""
    eights = nibbles.reshape(*nibbles.shape[:-1], -1, 8).astype(np.uint32)
    packed = np.zeros(eights.shape[:-1], np.uint32)
    for bits, column in enumerate(places):
        packed |= (eights[..., column] & 15) << np.uint32(4 * bits)
    return packed.view(np.int32)


def awq(weight: Array, group: int = 32) -> Packed:
    q, zeros, scales = rounded(weight, group, symmetric=False)
    tensors = {
        "qweight": int32_of(q, AWQ_ORDER),
        "qzeros": int32_of(zeros, AWQ_ORDER),
        "scales": scales,
    }
    return Packed(tensors, restored(q, zeros, scales, np.arange(len(q)) // group))


def gptq(
    weight: Array, group: int = 32, *, symmetric: bool = True, version: int = 1, order: int = -1
) -> Packed:
    """`order`: the seed of the inputs' order by activation; -1 leaves them in their own."""
    inputs = weight.shape[1]
    ordered = None if order < 0 else np.random.default_rng([order, inputs]).permutation(inputs)
    q, zeros, scales = rounded(weight, group, symmetric=symmetric, order=ordered)
    groups = np.empty(inputs, np.int32)
    groups[np.arange(inputs) if ordered is None else ordered] = np.arange(inputs) // group
    packed = int32_of(zeros)
    if version == 1:
        packed = (packed.view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    tensors = {
        "qweight": int32_of(q.T).T,
        "qzeros": packed,
        "scales": scales,
        "g_idx": groups,
    }
    return Packed(tensors, restored(q, zeros, scales, groups))


def modelopt_int4(weight: Array, group: int = 32) -> Packed:
    outputs, inputs = weight.shape
    smooth = np.linspace(0.5, 2, inputs).astype(np.float16)
    blocks = (weight / smooth.astype(np.float64)).reshape(outputs, -1, group)
    scales = (np.abs(blocks).max(2) / 7).astype(np.float32)
    q = np.clip(np.rint(blocks / scales[..., None]), -8, 7).astype(np.int64)
    weights = (q * scales.astype(np.float64)[..., None]).reshape(outputs, inputs)
    q = q.reshape(outputs, inputs) & 15
    tensors = {
        "weight": (q[0::2] | (q[1::2] << 4)).astype(np.uint8),
        "weight_scale": scales,
        "pre_quant_scale": smooth,
    }
    return Packed(tensors, weights * smooth.astype(np.float64))


def int8(
    weight: Array, *, smooth: bool = False, step: float | None = 0.05, column: bool = False
) -> Packed:
    """ModelOpt's INT8, with `column` compressed-tensors'."""
    outputs, inputs = weight.shape
    factors = np.linspace(0.5, 2, inputs).astype(np.float32) if smooth else np.ones(inputs)
    weight = weight / factors
    scales = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float32)
    q = np.clip(np.rint(weight / scales), -128, 127).astype(np.int8)
    tensors: dict[str, Array] = {
        "weight": q,
        "weight_scale": scales if column else scales.reshape(outputs),
    }
    if smooth:
        tensors["pre_quant_scale"] = factors
    if step is not None:
        tensors["input_scale"] = np.array([step] if column else step, np.float32)
    found = None if step is None else np.float64(np.float32(step)) / factors
    return Packed(tensors, q * scales.astype(np.float64) * factors, found)


def compressed(
    weight: Array, group: int = 32, *, symmetric: bool = True, order: int = -1
) -> Packed:
    outputs, inputs = weight.shape
    group = inputs if group == -1 else group
    ordered = None if order < 0 else np.random.default_rng([order, inputs]).permutation(inputs)
    q, zeros, scales = rounded(weight, group, symmetric=symmetric, order=ordered)
    groups = np.empty(inputs, np.int32)
    groups[np.arange(inputs) if ordered is None else ordered] = np.arange(inputs) // group
    tensors = {
        "weight_packed": int32_of(q.T),
        "weight_scale": scales.T,
        "weight_shape": np.array([outputs, inputs]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = int32_of(zeros).T
    if ordered is not None:
        tensors["weight_g_idx"] = groups
    return Packed(tensors, restored(q, zeros, scales, groups))


def _compressed_config(
    stored: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


_CT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
_CT8 = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
_AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True}
_MODELOPT = {"quant_method": "modelopt", "producer": {"name": "modelopt"}}

TOOLS: Mapping[str, Tool] = {
    "awq": Tool(_AWQ, awq),
    "gptq": Tool(_GPTQ, gptq),
    "gptq asymmetric": Tool(_GPTQ | {"sym": False}, lambda w: gptq(w, symmetric=False)),
    "gptq v2": Tool(
        _GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
        lambda w: gptq(w, symmetric=False, version=2),
    ),
    "gptq by activation": Tool(_GPTQ | {"desc_act": True}, lambda w: gptq(w, order=3)),
    "gptq by activation, asymmetric": Tool(
        _GPTQ | {"desc_act": True, "sym": False}, lambda w: gptq(w, order=3, symmetric=False)
    ),
    "modelopt int4": Tool(
        {"quant_algo": "W4A16_AWQ", "group_size": 32, "has_zero_point": False},
        modelopt_int4,
        file="hf_quant_config.json",
    ),
    "modelopt int8": Tool(_MODELOPT | {"quant_algo": "W8A8_SQ_PER_CHANNEL"}, int8, "int8"),
    "modelopt int8, smooth": Tool(
        _MODELOPT | {"quant_algo": "W8A8_SQ_PER_CHANNEL"}, lambda w: int8(w, smooth=True), "int8"
    ),
    "modelopt int8 weights": Tool(
        _MODELOPT | {"quant_algo": "W8A16"}, lambda w: int8(w, step=None), "int8"
    ),
    "compressed-tensors": Tool(_compressed_config("pack-quantized", _CT4), compressed),
    "compressed-tensors asymmetric": Tool(
        _compressed_config("pack-quantized", _CT4 | {"symmetric": False}),
        lambda w: compressed(w, symmetric=False),
    ),
    "compressed-tensors per channel": Tool(
        _compressed_config("pack-quantized", _CT4 | {"strategy": "channel", "group_size": None}),
        lambda w: compressed(w, -1),
    ),
    "compressed-tensors by activation": Tool(
        _compressed_config("pack-quantized", _CT4 | {"actorder": "group"}),
        lambda w: compressed(w, order=5),
    ),
    "compressed-tensors int8": Tool(
        _compressed_config(
            "int-quantized", _CT8 | {"strategy": "channel"}, _CT8 | {"strategy": "tensor"}
        ),
        lambda w: int8(w, column=True),
        "int8",
    ),
}


@dataclass(frozen=True)
class Quantised:
    """A quantised checkpoint, the same of floats, and the layers' packed forms by weight."""

    path: Path
    floats: Path
    layers: dict[str, Packed] = field(repr=False)


def quantise(source: Path, root: Path, tool: Tool) -> Quantised:
    """Quantises the decoder's linear layers of a checkpoint of floats.

    Args:
        source: Written by `write_random_checkpoint`, in float32.
        root: Where to write both checkpoints.
        tool: How.
    """
    path, floats = root / "quantised", root / "floats"
    for made in (path, floats):
        shutil.copytree(source, made)
    stored = load_file(source / "model.safetensors")
    names = [name for name in stored if DECODER.fullmatch(name)]
    layers = {name: tool.pack(stored[name].astype(np.float64)) for name in names}
    # The file format takes the bytes as they lie.
    weights = {name: packed.stands_for.astype(np.float32, "C") for name, packed in layers.items()}
    save_file(stored | weights, floats / "model.safetensors", metadata={"format": "pt"})
    kept = {name: value for name, value in stored.items() if name not in layers}
    pieces = {
        f"{name.removesuffix('.weight')}.{short}": np.ascontiguousarray(tensor)
        for name, packed in layers.items()
        for short, tensor in packed.tensors.items()
    }
    save_file(kept | pieces, path / "model.safetensors", metadata={"format": "pt"})
    write_config(path, tool)
    return Quantised(path, floats, layers)


def write_config(path: Path, tool: Tool, **changes: Any) -> None:
    """Says how the checkpoint is quantised, where the tool says so."""
    told = {**tool.config, **changes}
    file = path / tool.file
    if tool.file == "config.json":
        content = json.loads(file.read_text()) | {"quantization_config": told}
    else:
        content = {"producer": {"name": "modelopt"}, "quantization": told}
    file.write_text(json.dumps(content))
