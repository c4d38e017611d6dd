"""A linear layer in the tensors of the tool that quantised it, told from their headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atp_models.quantised.refusals import misshapen
from atp_models.quantised.weight import QuantisedWeight

if TYPE_CHECKING:
    from atp_models.checkpoint import TensorInfo

SCALES = (torch.float16, torch.bfloat16, torch.float32)
Headers = Mapping[str, "TensorInfo"]
Unpack = Callable[[Mapping[str, Tensor]], QuantisedWeight]


@dataclass(frozen=True)
class PackedLayer:
    """A quantised linear layer.

    Attributes:
        name: Of the layer in canonical names, without `.weight`.
        shape: Of the weight it stands for, [out, in].
        bits: 4 or 8.
        group: Inputs that share a scale.
        activations: Whether its input is INT8, too.
        tool: Whose layout it is, a key of `methods.METHODS`.
        file: Where its integers lie.
        tensors: Its stored tensors: canonical names by what they are called in the layer.
        unpack: Makes the common form of them, read, by those short names.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    group: int
    activations: bool
    tool: str
    file: Path
    tensors: Mapping[str, str]
    unpack: Unpack

    @property
    def weight(self) -> str:
        """The canonical name of the weight it stands for."""
        return f"{self.name}.weight"


class Pieces:
    """The stored tensors of a layer, taken one after the other as the layout demands them.

    Attributes:
        name: The layer's.
        taken: Canonical names by short names.
    """

    def __init__(self, headers: Headers, name: str, layout: str) -> None:
        self._headers = headers
        self._layout = layout
        self.name = name
        self.taken: dict[str, str] = {}

    def __contains__(self, short: str) -> bool:
        return f"{self.name}.{short}" in self._headers

    def shape(self, short: str) -> tuple[int, ...]:
        """Of one that is there."""
        return self._headers[f"{self.name}.{short}"].shape

    def matrix(self, short: str) -> tuple[int, int]:
        """The shape of one that is there.

        Raises:
            InputError: It is no matrix.
        """
        shape = self.shape(short)
        if len(shape) != 2:
            raise self.refusal(f"{short} is {list(shape)}", "expected a matrix")
        return shape[0], shape[1]

    def file(self, short: str) -> Path:
        """Of one that is there."""
        return self._headers[f"{self.name}.{short}"].file

    def take(
        self, short: str, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype]
    ) -> None:
        """Takes one.

        Raises:
            InputError: It is missing, or has none of these shapes or dtypes.
        """
        name = f"{self.name}.{short}"
        info = self._headers.get(name)
        expected = " or ".join(str(list(shape)) for shape in shapes)
        if info is None:
            raise self.refusal(f"no {short}", f"expected, {expected}")
        if info.shape not in shapes or info.dtype not in dtypes:
            kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            found = f"{str(info.dtype).removeprefix('torch.')} {list(info.shape)}"
            raise self.refusal(f"{short} is {found}", f"expected {kinds} {expected}")
        self.taken[short] = name

    def refusal(self, what: str, why: str) -> Exception:
        """An error to be raised about this layer."""
        return misshapen(f"layer {self.name}", what, f"{why}, as {self._layout} writes it")


def layers_with(headers: Headers, short: str) -> Iterator[str]:
    """The names of layers that have a tensor of that short name."""
    for name in headers:
        layer, _, last = name.rpartition(".")
        if last == short:
            yield layer


def groups_of(inputs: int, group: int, pieces: Pieces) -> tuple[int, int]:
    """How many scales a column has, and how many inputs share one.

    Args:
        inputs: Rows of the weight.
        group: As configured; -1 is all inputs.
        pieces: For naming the layer.

    Raises:
        InputError: The group does not divide the inputs.
    """
    size = inputs if group == -1 else group
    if size < 1 or inputs % size:
        raise pieces.refusal(
            f"group_size {group} does not divide its {inputs} inputs",
            "expected whole groups",
        )
    return inputs // size, size


def nibbles(packed: Tensor) -> Tensor:
    """4-bit integers, the lowest bits of each element first: int8 [..., n * 2 * bytes] of 0 to 15.

    Args:
        packed: int32 or uint8 [..., n].
    """
    data = packed.contiguous().view(torch.uint8)
    pairs = torch.stack((data & 0xF, data >> 4), dim=-1)
    return pairs.view(torch.int8).flatten(-2)


def zeros_or_none(zeros: Tensor) -> Tensor | None:
    """None where all are 0."""
    return zeros if bool(zeros.any()) else None
