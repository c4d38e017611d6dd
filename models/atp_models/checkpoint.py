"""A Hugging Face LLaVA checkpoint directory, opened without loading it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atp_models.json_files import read_json
from atp_models.quantised import PackedLayer, QuantisedWeight, find_quantised
from atp_models.tensor_names import Part, canonical_parts
from atp_models.weight_files import find_weights, map_tensor, map_tensors
from atp_runtime.errors import InputError

if TYPE_CHECKING:
    from atp_models.architecture import ModelSpec

_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SHOWN_OFFENDERS = 5
_SAMPLE_ELEMENTS = 2048


@dataclass(frozen=True)
class TensorInfo:
    """What a weight file's header says about one tensor.

    Attributes:
        name: Canonical name, a key of Transformers 5's LLaVA state dict.
        dtype: As stored.
        shape: As stored, except that a fused tensor is described by its part.
        file: The weight file it lies in.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Source:
    """Where a canonical tensor's bytes are: the stored name, and which part of it."""

    stored: str
    part: Part


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory: its config, its tensors' headers, and their bytes on demand.

    Attributes:
        path: The directory.
        config: `config.json`, as it is.
        tensors: What the weight files hold, by canonical name, sorted. In place of the tensors of
            a quantised layer the weight is there that they stand for, as float32.
        quantised: The quantised layers, by the names of their weights.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    quantised: Mapping[str, PackedLayer]
    _stored: Mapping[str, TensorInfo] = field(repr=False)
    _sources: Mapping[str, _Source] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Reads `config.json` and the headers of the weight files.

        Args:
            path: A directory in the layout of `LlavaForConditionalGeneration`.

        Raises:
            InputError: The directory, its config or its weights are missing, damaged or
                incomplete, or are quantised in a way that is not supported. Whether they fit
                together is `check_tensors`' business.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(
                f"{path} is not a directory",
                why="a checkpoint is a directory with config.json and weight files",
                fix="check the path",
            )
        if not (path / "config.json").is_file():
            raise InputError(
                f"{path} holds no config.json",
                why="the network's architecture is described there",
                fix="give the directory that `save_pretrained` wrote or the model hub serves",
            )
        config = read_json(path / "config.json")
        tensors: dict[str, TensorInfo] = {}
        sources: dict[str, _Source] = {}
        for info, source in _headers(path):
            if info.name in tensors:
                raise InputError(
                    f"{info.file} and {tensors[info.name].file} both hold {info.name}",
                    why="one of the two would be ignored, and which is a guess",
                    fix=f"remove the stale one (stored here as {source.stored})",
                )
            tensors[info.name], sources[info.name] = info, source
        stored = dict(sorted(tensors.items()))
        quantised = find_quantised(path, config, stored)
        return cls(path, config, _as_weights(stored, quantised), quantised, stored, sources)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, of the stored dtype, contiguous, on the CPU.

        It is mapped from the file: pages count as resident once touched, and are given back
        when the tensor is dropped. Writing to it changes neither the file nor another read;
        the file must not be cut short while the tensor lives. The weight of a quantised layer
        is made, in memory, of its integers.

        Args:
            name: Canonical name.

        Raises:
            InputError: The checkpoint holds no such tensor.
        """
        if name not in self.tensors:
            raise InputError(
                f"{self.path} holds no tensor {name}",
                why="it was asked for by its canonical name",
                fix="check the checkpoint with `check_tensors` before reading it",
            )
        if name in self.quantised:
            return self.read_quantised(name).dequantised()
        return self._map(name)

    def read_quantised(self, name: str) -> QuantisedWeight:
        """The integers that a weight is stored as.

        Args:
            name: A key of `quantised`.

        Raises:
            InputError: They are not as the tool documents them.
        """
        layer = self.quantised[name]
        return layer.unpack({short: self._map(stored) for short, stored in layer.tensors.items()})

    def _map(self, name: str) -> torch.Tensor:
        source = self._sources[name]
        return _cut(map_tensor(self._stored[name].file, source.stored), source.part)

    def fingerprint(self) -> str:
        """A cheap identity of the checkpoint, in sha256 hex digits.

        Covers the bytes of `config.json`; name and size of every weight file; canonical name,
        dtype and shape of every tensor; and from the middle of every tensor up to 2048
        elements of its data (all of a norm's or bias's). Two checkpoints that differ only
        outside these samples get the same fingerprint: it tells fine-tunes and conversions
        apart, and is no proof of integrity. Covers no other file of the directory, but for what
        `hf_quant_config.json` says of layers.
        """
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        files = sorted({info.file for info in self._stored.values()})
        samples: dict[str, bytes] = {}
        for file in files:
            _feed(digest, [file.name, file.stat().st_size])
            stored = map_tensors(file)
            for name, info in self._stored.items():
                if info.file == file:
                    source = self._sources[name]
                    samples[name] = _sample(_cut(stored[source.stored], source.part))
        for name, info in self._stored.items():
            _feed(digest, [name, str(info.dtype), info.shape])
            digest.update(samples[name])
        for name, layer in self.quantised.items():
            _feed(digest, [name, layer.tool, layer.bits, layer.group, layer.activations])
        return digest.hexdigest()


def check_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Checks that the weights are those of the architecture, from the headers alone.

    Args:
        checkpoint: An opened checkpoint.
        spec: What `read_architecture` made of its config.

    Raises:
        InputError: A tensor that the architecture needs is missing, of another shape or not
            of a floating type, or the files hold layers that the config does not know of.
            Other tensors too many are fine.
    """
    offenders = [
        f"{name}: {complaint}"
        for name, shape in spec.tensor_shapes().items()
        if (complaint := _complaint(checkpoint.tensors.get(name), shape))
    ]
    offenders += [
        f"{name}: expected no such layer"
        for name in checkpoint.tensors
        if spec.is_beyond_depth(name)
    ]
    if offenders:
        shown = "".join(f"\n    {line}" for line in offenders[:_SHOWN_OFFENDERS])
        more = len(offenders) - _SHOWN_OFFENDERS
        raise InputError(
            f"the weights in {checkpoint.path} do not fit its config.json:{shown}"
            + (f"\n    and {more} more" if more > 0 else ""),
            why="the network that the config describes cannot be built from them",
            fix="use the config.json that belongs to these weights, or fetch both again",
        )


def misfit(found: TensorInfo | None, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor that training added to a LLaVA, in words; None if nothing."""
    if found is None:
        return "is missing"
    if found.shape != shape:
        return f"is {list(found.shape)}, not {list(shape)}"
    if not found.dtype.is_floating_point:
        return f"is {found.dtype}, not of a floating type"
    return None


def _headers(path: Path) -> Iterator[tuple[TensorInfo, _Source]]:
    for file, promised in find_weights(path).items():
        stored = map_tensors(file)
        absent = sorted((promised or frozenset()) - stored.keys())
        if absent:
            raise InputError(
                f"{file} lacks {absent[0]}, which its index places there",
                why=f"{len(absent)} of {len(promised or ())} tensors of that shard are missing",
                fix="fetch the shards and their index again, from the same revision",
            )
        for name, tensor in stored.items():
            for part in canonical_parts(name):
                shape = tuple(_cut(tensor, part).shape)
                yield TensorInfo(part.name, tensor.dtype, shape, file), _Source(name, part)


def _as_weights(
    stored: Mapping[str, TensorInfo], quantised: Mapping[str, PackedLayer]
) -> dict[str, TensorInfo]:
    """The headers, with weights in place of what quantised layers are stored as."""
    packed = {name for layer in quantised.values() for name in layer.tensors.values()}
    seen = {name: info for name, info in stored.items() if name not in packed}
    for name, layer in quantised.items():
        if name in seen:
            raise InputError(
                f"{layer.file} holds {name} both quantised and not",
                why="one of the two would be ignored, and which is a guess",
                fix="remove the stale one",
            )
        seen[name] = TensorInfo(name, torch.float32, layer.shape, layer.file)
    return dict(sorted(seen.items()))


def _cut(stored: torch.Tensor, part: Part) -> torch.Tensor:
    whole = stored.detach()
    if part.count > 1:
        whole = whole.chunk(part.count, dim=0)[part.index]
    return whole.contiguous()


def _sample(tensor: torch.Tensor) -> bytes:
    flat = tensor.reshape(-1)
    start = max(0, (flat.numel() - _SAMPLE_ELEMENTS) // 2)
    return flat[start : start + _SAMPLE_ELEMENTS].view(torch.uint8).numpy().tobytes()


def _feed(digest: Any, values: list[Any]) -> None:
    digest.update(json.dumps(values).encode() + b"\n")


def _complaint(found: TensorInfo | None, expected: tuple[int, ...]) -> str | None:
    if found is None:
        return f"expected {list(expected)}, found none"
    if found.shape != expected:
        return f"expected {list(expected)}, found {list(found.shape)}"
    if found.dtype not in _WEIGHT_DTYPES:
        return f"expected float32, float16 or bfloat16, found {found.dtype}"
    return None
