"""QueCC's compressor, in the graph and in the reference, against an independent reading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from tests.compressor import Reading, drawn

from atp_export.graphs.compressor import CellCompressor
from atp_export.graphs.dialects import DIALECTS
from atp_export.signatures import Signature
from atp_export.stage_graph import StageBuilder
from atp_export.trace import Argument, trace
from atp_models.architecture import ModelSpec, VisionSpec
from atp_models.reference_compressor import Compressor
from atp_runtime.manifest import TensorSpec

WIDTH, HIDDEN = 16, 12
FLOAT = torch.float32
# Rows and columns of patches, cells along each side, layers of the tower that are used.
SHAPES = [((4, 6), 2, 2), ((3, 3), 1, 1), ((2, 2), 2, 3)]
Compress = Callable[[np.ndarray, np.ndarray], np.ndarray]


def tower(spec: ModelSpec, patches: tuple[int, int], layers: int) -> VisionSpec:
    chosen = tuple(range(1, layers + 1)) if layers > 1 else 1
    return replace(spec.vision, hidden=WIDTH, grid=patches, feature_layer=chosen)


def graph(vision: VisionSpec, grid: int, dialect: str) -> Compress:
    """The module as it comes into a stage's graph, run by ONNX Runtime."""
    features = (vision.grid[0] * vision.grid[1], vision.feature_width)
    given = {"features": ("images", *features), "text_mean": (1, HIDDEN)}
    arguments = [Argument(name, shape, FLOAT) for name, shape in given.items()]
    build = partial(CellCompressor, vision, HIDDEN, DIALECTS[dialect], grid)
    opset = DIALECTS[dialect].opset
    piece = trace("piece", build, arguments, ["tokens"], dtype=FLOAT, opset=opset)
    inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in given.items())
    tokens = TensorSpec("tokens", "float32", ("images", grid**2, features[1]))
    builder = StageBuilder("stage", Signature(inputs, (tokens,)), opset=opset)
    (value,) = builder.call(piece, list(builder.inputs.values()), label="it")
    made = builder.finish({"tokens": value})
    stored = drawn(vision, HIDDEN, grid)
    weights = {}
    for weight in made.weights:
        tensor = stored[f"quecc.{weight.source}"]
        weights[weight.name] = (tensor.t() if weight.transposed else tensor).numpy()
    assert len(weights) == len(stored)
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(made.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def run(photos: np.ndarray, text: np.ndarray) -> np.ndarray:
        (found,) = session.run(["tokens"], {"features": photos, "text_mean": text[None], **weights})
        return np.asarray(found)

    return run


def reference(vision: VisionSpec, grid: int) -> Compress:
    stored = drawn(vision, HIDDEN, grid).items()
    made = Compressor({name.removeprefix("quecc."): it for name, it in stored}, vision.grid)
    return lambda photos, text: made.of(*map(torch.from_numpy, (photos, text))).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["portable", "native", "reference"])
def test_tokens_of_two_images_are_those_of_an_independent_reading(
    spec: ModelSpec, shape: tuple[tuple[int, int], int, int], side: str
) -> None:
    patches, grid, layers = shape
    vision = tower(spec, patches, layers)
    run = reference(vision, grid) if side == "reference" else graph(vision, grid, side)
    reading = Reading(drawn(vision, HIDDEN, grid), patches, grid)
    random = np.random.default_rng(grid)
    for spread in (0.0, 0.02, 1.0, 5.0):  # of embeddings; no question is zeros
        text = (spread * random.normal(size=HIDDEN)).astype(np.float32)
        size = (2, patches[0] * patches[1], vision.feature_width)
        photos = (3 * random.normal(size=size)).astype(np.float32)
        found = run(photos, text)
        for photo, tokens in zip(photos, found, strict=True):
            expected = reading.tokens(photo, text)
            np.testing.assert_allclose(tokens, expected, rtol=1e-3, atol=2e-5)


def test_a_token_is_made_of_its_own_cell_alone(spec: ModelSpec) -> None:
    vision = tower(spec, (4, 4), 1)
    run = graph(vision, 2, "portable")
    random = np.random.default_rng(0)
    photo = random.normal(size=(1, 16, WIDTH)).astype(np.float32)
    text = random.normal(size=HIDDEN).astype(np.float32)
    before = run(photo, text)[0]
    photo[0, 6] += 1  # row 1, column 2: of the second cell
    moved = np.abs(run(photo, text)[0] - before).max(axis=1)
    assert (moved > 1e-3).tolist() == [False, True, False, False]
