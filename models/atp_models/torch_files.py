"""The older `.bin` weight files, through torch's weights-only loading alone.

A load that maps the file takes tens of milliseconds, too long to repeat for each of hundreds
of tensors, and a mapping that is kept grows resident with every tensor read. So the file is
loaded once without its data, under fake tensors, which is PyTorch's way to learn where each
storage lies (its notes on serialization, `_checkpoint_offset`), and tensors are mapped from
there one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from atp_runtime.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where in a file a tensor is, and how to look at it.

    Attributes:
        offset: Of its storage, in bytes from the start of the file.
        nbytes: Of its storage.
        first: Its first element's index in the storage.
        dtype: Of its elements.
        shape: Of the tensor.
        strides: In elements.
    """

    offset: int
    nbytes: int
    first: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def torch_places(file: Path) -> Mapping[str, Place]:
    """Where the tensors of a `.bin` file are; nothing but its pickle is read.

    Args:
        file: Written by `torch.save` from a state dict, with PyTorch 1.6 or later.

    Raises:
        InputError: Weights-only loading refuses it, or it holds more than dense tensors.
    """
    about = file.stat()
    return _places(file, about.st_size, about.st_mtime_ns)


def map_place(file: Path, place: Place) -> torch.Tensor:
    """The tensor at a place, mapped from the file, none of it read."""
    whole: Any = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
    storage = whole[place.offset : place.offset + place.nbytes]
    empty = torch.empty(0, dtype=place.dtype)
    return empty.set_(storage, place.first, place.shape, place.strides)


# Keyed by size and time too, so that a file written anew is looked at anew.
@lru_cache(maxsize=64)
def _places(file: Path, size: int, _modified_ns: int) -> Mapping[str, Place]:
    try:
        with FakeTensorMode():
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle ends in any of them
        _refuse(file, f"is refused by torch's weights-only loading ({_first_line(error)})", error)
    if not isinstance(content, dict):
        _refuse(file, f"holds a {type(content).__name__}, not a state dict")
    return {name: _place(file, size, name, value) for name, value in content.items()}


def _place(file: Path, size: int, name: object, value: object) -> Place:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        _refuse(file, f"holds a {type(value).__name__} under {name!r}, not a tensor")
    if value.layout != torch.strided or value.is_quantized:
        _refuse(file, f"holds {name} in a sparse or quantised layout")
    storage: Any = value.untyped_storage()
    offset = storage._checkpoint_offset  # noqa: SLF001
    if offset is None:
        _refuse(file, "has the format of PyTorch before 1.6, which cannot be mapped")
    if offset + storage.nbytes() > size:
        _refuse(file, f"ends before {name} does")
    return Place(
        offset,
        storage.nbytes(),
        int(value.storage_offset()),
        value.dtype,
        tuple(value.shape),
        value.stride(),
    )


def _refuse(file: Path, what: str, error: Exception | None = None) -> NoReturn:
    raise InputError(
        f"{file} {what}",
        why="only dense tensors by name are read from a .bin file, and no other objects",
        fix="convert it to safetensors on a machine where you trust its source",
    ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
