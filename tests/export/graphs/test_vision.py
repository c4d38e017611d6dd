"""The vision stage of each tower against Transformers' own LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from atp_export.compose import StageComposer
from atp_export.stage_graph import StageGraph
from atp_models.architecture import read_architecture
from atp_models.checkpoint import Checkpoint
from atp_models.random_checkpoint import write_random_checkpoint
from atp_models.random_configs import tiny_config

KINDS: dict[str, dict[str, Any]] = {
    "clip": {"feature_layer": -2},
    "siglip": {"feature_layer": [0, -1], "strategy": "full"},
    "dinov2": {"feature_layer": -1},
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageGraph, Any]:
    """A composed vision stage, and Transformers' model with the weights it is to have."""
    path: Path = tmp_path_factory.mktemp("vision")
    write_random_checkpoint(path, tiny_config(vision=request.param, **KINDS[request.param]))
    spec = read_architecture(Checkpoint.open(path))
    dialect = "native" if request.param == "dinov2" else "portable"
    graph = StageComposer(spec, dialect=dialect, dtype=torch.float32).vision()
    return graph, LlavaForConditionalGeneration.from_pretrained(path).eval()


@pytest.mark.parametrize("images", [1, 3])
def test_image_features_are_those_of_transformers(
    stage: tuple[StageGraph, Any], images: int
) -> None:
    graph, model = stage
    weights = {"model." + name: value for name, value in model.model.state_dict().items()}
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(images))
    feeds = {"pixel_values": pixels.numpy()}
    for weight in graph.weights:
        value = weights[weight.source]
        feeds[weight.name] = (value.t() if weight.transposed else value).contiguous().numpy()
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(graph.model).SerializeToString()
    )
    (features,) = session.run(["image_features"], feeds)
    with torch.inference_mode():
        expected = torch.stack(list(model.model.get_image_features(pixels).pooler_output))
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-4, atol=1e-5)


def test_layers_above_the_last_used_one_are_left_out(stage: tuple[StageGraph, Any]) -> None:
    graph, model = stage
    used = max(
        layer % 5 for layer in torch.tensor(model.config.vision_feature_layer).flatten().tolist()
    )
    found = {
        int(weight.name.split(".")[4]) for weight in graph.weights if ".encoder." in weight.name
    }
    assert found == set(range(used))


def test_a_layer_has_no_shape_arithmetic(stage: tuple[StageGraph, Any]) -> None:
    graph, _ = stage
    inside = {node.op_type for node in graph.model.graph if ".encoder." in str(node.name)}
    assert not inside & {"Shape", "Slice", "Gather", "Expand", "Where", "IsNaN"}
