"""QueCC's compressor (arXiv 2411.03312): what a checkpoint has of it before its projector.

Names below `quecc.` (or `model.quecc.`), a linear layer or norm each, of `weight` and `bias`:

- `text.linear` [width, hidden] and `text.norm` [width]: what the question adds to each patch,
- `queries`, `keys` and `values`, each `linear_1`, GELU, `linear_2` [width, width], `norm` [width];
  `linear_1` is [width, width] of queries and [width, features] of the others,
- `downsample` [width, 1, rows, columns]: a depthwise convolution over the patches of a cell,
- `attention.q_proj`, `.k_proj`, `.v_proj` [width, width] and `.out_proj` [features, width].

Width is the tower's; features is that of what the projector gets, of all layers that are used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atp_models.checkpoint import Checkpoint, misfit
from atp_models.vision_spec import VisionSpec
from atp_runtime.errors import InputError

PREFIX = "model.quecc."
"""What the canonical names of its tensors begin with."""
HEADS = 8
"""Of its attention."""
EPSILON = 1e-6
"""Of its norms."""
_ROLES = ("queries", "keys", "values")


def compressor_shapes(vision: VisionSpec, hidden: int, grid: int) -> dict[str, tuple[int, ...]]:
    """Shapes of its tensors, by canonical name.

    Args:
        vision: The tower.
        hidden: The decoder's width.
        grid: Cells along each side of a photo.
    """
    width, features = vision.hidden, vision.feature_width
    layers: dict[str, tuple[int, ...]] = {"text.linear": (width, hidden), "text.norm": (width,)}
    for role in _ROLES:
        layers[f"{role}.linear_1"] = (width, width if role == "queries" else features)
        layers |= {f"{role}.linear_2": (width, width), f"{role}.norm": (width,)}
    layers["downsample"] = (width, 1, vision.grid[0] // grid, vision.grid[1] // grid)
    layers |= {f"attention.{it}_proj": (width, width) for it in "qkv"}
    layers["attention.out_proj"] = (features, width)
    weights = {f"{PREFIX}{name}.weight": shape for name, shape in layers.items()}
    return weights | {f"{PREFIX}{name}.bias": shape[:1] for name, shape in layers.items()}


def has_compressor(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has anything of one."""
    return any(name.startswith(PREFIX) for name in checkpoint.tensors)


def check_compressor(checkpoint: Checkpoint, vision: VisionSpec, hidden: int, grid: int) -> None:
    """Checks, from the headers alone, that a checkpoint has a compressor.

    Args:
        checkpoint: An opened checkpoint.
        vision: Its tower.
        hidden: Its decoder's width.
        grid: Cells along each side of a photo.

    Raises:
        InputError: A tensor is missing, of another shape or not of a floating type.
    """
    for name, shape in compressor_shapes(vision, hidden, grid).items():
        found = misfit(checkpoint.tensors.get(name), shape)
        if found:
            raise InputError(
                f"{checkpoint.path}: {name} {found}",
                why=f"photos become {grid} x {grid} tokens by a compressor that was trained for "
                "that, and nothing can stand in for its weights.",
                fix="give a checkpoint trained with one, and the grid that it was trained for, or "
                "choose a policy that needs no training.",
            )


def read_compressor(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Its tensors in float32, by their names below `PREFIX`."""
    names = [name for name in checkpoint.tensors if name.startswith(PREFIX)]
    return {it.removeprefix(PREFIX): checkpoint.read(it).to(torch.float32) for it in names}
