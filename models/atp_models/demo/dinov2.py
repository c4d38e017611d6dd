"""The vision tower of the demo: a DINOv2 ViT read out of an ONNX file's initialisers.

The file is an old-style (TorchScript) export of a saliency network whose backbone is
Transformers' `Dinov2Model`. Most initialisers still bear their parameter's name. Those that
constant folding renamed are found through the node that reads them: each linear weight,
transposed, through its MatMul, and the two pieces of the position table through the nodes
that reshape and concatenate them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch.nn.functional import interpolate
from transformers import Dinov2Config

from atp_runtime.errors import CheckFailedError

_BACKBONE = "backbone."
_EMBEDDINGS = "/backbone/embeddings/"
_HEAD_WIDTH = 64  # the same in every published DINOv2 size


@dataclass(frozen=True)
class VisionTower:
    """A DINOv2 tower ready to be stored.

    Attributes:
        config: Transformers' configuration of the tower.
        state: Parameters in float32, under the names that Dinov2 checkpoints use.
    """

    config: Dinov2Config
    state: dict[str, torch.Tensor]


def read_vision_tower(onnx_file: Path, *, image_size: int) -> VisionTower:
    """Read the backbone in `onnx_file` as a tower for square images of `image_size` pixels.

    The table of positions is interpolated here, once, to the grid of that image size;
    Transformers would do the same at every call.

    Raises:
        CheckFailedError: The graph is not such an export of a `Dinov2Model`.
    """
    graph = onnx.load(onnx_file).graph
    initialisers = {i.name: _tensor(i) for i in graph.initializer}
    state = {
        name.removeprefix(_BACKBONE): value
        for name, value in initialisers.items()
        if name.startswith(_BACKBONE)
    }
    state |= _linear_weights(graph, initialisers)
    config = _config_of(state, image_size)
    state["embeddings.position_embeddings"] = interpolate_positions(
        _position_table(graph, initialisers), image_size // config.patch_size
    )
    return VisionTower(config, state)


def interpolate_positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Resample a square table of positions to `grid` x `grid`, the CLS row left alone.

    Bicubic without aligned corners, in the dtype of `table`: the arithmetic of Transformers'
    `Dinov2Embeddings.interpolate_pos_encoding`.

    Args:
        table: Positions `[1, 1 + old_grid**2, width]`, CLS first.
        grid: Patches on one side of the image.

    Returns:
        Positions `[1, 1 + grid**2, width]`.
    """
    old_grid = round((table.shape[1] - 1) ** 0.5)
    if old_grid == grid:
        return table
    patches = table[:, 1:].reshape(1, old_grid, old_grid, -1).permute(0, 3, 1, 2)
    patches = interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)
    return torch.cat([table[:, :1], patches], dim=1)


def _linear_weights(
    graph: onnx.GraphProto, initialisers: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Weights of the backbone's linear layers, `[out, in]`, under their parameters' names."""
    weights = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/"):
            if node.input[1] not in initialisers:
                continue  # a product of two activations, inside attention
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            transposed = initialisers[node.input[1]]
            weights[module.replace("/", ".") + ".weight"] = transposed.T.contiguous()
    return weights


def _position_table(graph: onnx.GraphProto, initialisers: dict[str, torch.Tensor]) -> torch.Tensor:
    """The position table `[1, 1 + grid**2, width]`, CLS first."""
    pieces = {
        node.op_type: initialisers[node.input[0]]
        for node in graph.node
        if node.name.startswith(_EMBEDDINGS)
        and node.op_type in {"Concat", "Reshape"}
        and node.input[0] in initialisers
    }
    if set(pieces) != {"Concat", "Reshape"}:
        raise _unexpected("its position table was not found")
    return torch.cat([pieces["Concat"], pieces["Reshape"]], dim=1)


def _config_of(state: dict[str, torch.Tensor], image_size: int) -> Dinov2Config:
    """Read the sizes of the tower off the shapes of its parameters."""
    patch_kernel = state.get("embeddings.patch_embeddings.projection.weight")
    first_mlp = state.get("encoder.layer.0.mlp.fc1.weight")
    if patch_kernel is None or first_mlp is None:
        raise _unexpected("its patch embedding or its first layer was not found")
    width = patch_kernel.shape[0]
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith(".norm1.weight") for name in state),
        num_attention_heads=width // _HEAD_WIDTH,
        mlp_ratio=first_mlp.shape[0] // width,
        image_size=image_size,
        patch_size=patch_kernel.shape[-1],
        # The mask token serves pretraining alone and is not in the graph.
        use_mask_token=False,
    )


def _tensor(proto: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(numpy_helper.to_array(proto).copy())


def _unexpected(detail: str) -> CheckFailedError:
    return CheckFailedError(
        f"the vision tower's graph is not the expected one: {detail}",
        why="its weights cannot be matched to a DINOv2 tower without guessing",
        fix="use the pinned package named in atp_models.demo.parts",
    )
