"""Finding and mapping the weight files of a Hugging Face model directory.

Everything here hands out mapped tensors: the bytes come from the page cache when they are
touched and leave the process when the tensor is dropped. Opening a file anew for each tensor
is what keeps a walk over 14 GB at the memory of its largest tensor, and copies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from atp_models.json_files import FETCH_AGAIN, read_json, refuse_lfs_pointer
from atp_models.torch_files import map_place, torch_places
from atp_runtime.errors import InputError

_SAFETENSORS = "model.safetensors"
_TORCH = "pytorch_model.bin"


def find_weights(directory: Path) -> dict[Path, frozenset[str] | None]:
    """The weight files of a model directory, in Transformers' order of preference.

    Args:
        directory: Holds `model.safetensors`, its sharded form with an index, or the older
            `pytorch_model.bin` in either form.

    Returns:
        The files, each with the names its index promises (None without an index).

    Raises:
        InputError: No weights, or an index that is malformed or names a missing file.
    """
    for single in (_SAFETENSORS, _TORCH):
        if (directory / single).exists():
            return {directory / single: None}
        index = directory / f"{single}.index.json"
        if index.exists():
            return _indexed_files(index)
    raise InputError(
        f"{directory} holds no weights",
        why=f"neither {_SAFETENSORS} nor {_TORCH} is there, nor an index of shards",
        fix="give the directory that `save_pretrained` wrote or the model hub serves",
    )


def map_tensors(file: Path) -> Mapping[str, torch.Tensor]:
    """All tensors of a weight file, mapped, none read.

    Args:
        file: A safetensors file, or a `.bin` written by `torch.save`.

    Returns:
        Stored name to tensor. Dropping the result drops the mapping.

    Raises:
        InputError: The file is truncated, of another format, or holds more than tensors.
    """
    refuse_lfs_pointer(file)
    if file.suffix == ".safetensors":
        with _opened(file) as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    return {name: map_place(file, place) for name, place in torch_places(file).items()}


def map_tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor of a weight file, mapped.

    Args:
        file: A file that `map_tensors` accepts.
        name: Stored name.

    Raises:
        InputError: As `map_tensors`; the file may have changed since.
    """
    if file.suffix == ".safetensors":
        with _opened(file) as reader:
            tensor: torch.Tensor = reader.get_tensor(name)
            return tensor
    return map_place(file, torch_places(file)[name])


def _indexed_files(index: Path) -> dict[Path, frozenset[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"{index} has no weight_map",
            why="it should say which shard holds which tensor",
            fix=FETCH_AGAIN,
        )
    names: dict[Path, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(
                f"{index} places {name} in {shard!r}",
                why="a shard is a file beside its index",
                fix=FETCH_AGAIN,
            )
        names.setdefault(index.parent / shard, set()).add(name)
    missing = sorted(file.name for file in names if not file.is_file())
    if missing:
        raise InputError(
            f"{index} names {', '.join(missing[:3])}, missing from {index.parent}",
            why=f"{len(missing)} of {len(names)} shards are not there",
            fix="finish the download, or copy the missing shards",
        )
    return {file: frozenset(held) for file, held in sorted(names.items())}


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is not a whole safetensors file ({error})",
            why="its header and its size do not agree, so it is truncated or damaged",
            fix=FETCH_AGAIN,
        ) from error
