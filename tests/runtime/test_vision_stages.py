"""The vision stage, a rule behind it and the projector, as hand-made graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.conftest import GraphWriter, write_manifest

from atp_runtime.backends import open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.errors import CheckFailedError, InputError
from atp_runtime.image_tokens import Places
from atp_runtime.manifest import (
    AxisRange,
    Manifest,
    Stage,
    TensorSpec,
    VisionModel,
    VisionPruning,
    read_manifest,
)
from atp_runtime.reduction import NOWHERE, Reduction
from atp_runtime.vision_stages import VisionStages

TOKENS, WIDTH, HIDDEN = 4, 3, 8
PIXELS = TensorSpec("pixel_values", "float32", ("images", 3, 8, 8))
SCORES = TensorSpec("scores.class", "float32", ("images", TOKENS))
MEAN_KEYS = TensorSpec("keys.mean", "float32", ("images", TOKENS, 2))
PATCHES = TensorSpec("patch_features", "float32", ("images", TOKENS, WIDTH))
FEATURES = TensorSpec("image_features", "float32", ("images", TOKENS, WIDTH))
PROJECTED = TensorSpec("image_features", "float32", (1, "selected", HIDDEN))
SELECTED = TensorSpec("patch_features", "float32", (1, "selected", WIDTH))

# Red is what a patch is worth, by quarter of the photo; keys are two of a kind.
KEYS = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]], np.float32)
PROJECTION = np.random.default_rng(3).normal(size=(WIDTH, HIDDEN)).astype(np.float32)


def write_vision(root: Path, outputs: tuple[TensorSpec, ...]) -> Stage:
    """Features are the mean colours of the photo's quarters, scores their red."""
    graph = GraphWriter()
    kernel = graph.constant(np.eye(3, dtype=np.float32)[:, :, None, None])
    same = graph.add("Conv", "pixel_values", kernel)
    pooled = graph.add("AveragePool", same, kernel_shape=[4, 4], strides=[4, 4])
    flat = graph.add("Reshape", pooled, graph.integers(0, 3, TOKENS))
    graph.add("Transpose", flat, perm=[0, 2, 1], output=outputs[0].name)
    if SCORES in outputs:
        red = graph.add("Slice", flat, *(graph.integers(it) for it in (0, 1, 1)))
        graph.add("Reshape", red, graph.integers(0, TOKENS), output="scores.class")
    if MEAN_KEYS in outputs:
        graph.add("Identity", graph.constant(KEYS[None]), output="keys.mean")
    graph.write(root / "onnx/vision.onnx", (PIXELS,), outputs)
    return Stage("vision", "vision", "onnx/vision.onnx", (), (PIXELS,), outputs)


def write_projector(root: Path) -> Stage:
    graph = GraphWriter()
    weight = graph.constant(PROJECTION)
    # Not linear: an average of projections is another thing than the projection of an average.
    graph.add("Relu", graph.add("MatMul", "patch_features", weight), output="image_features")
    graph.write(root / "onnx/projector.onnx", (SELECTED,), (PROJECTED,))
    return Stage("projector", "projector", "onnx/projector.onnx", (), (SELECTED,), (PROJECTED,))


def make(
    root: Path, outputs: tuple[TensorSpec, ...], pruning: VisionPruning | None, *, cut: bool
) -> VisionStages:
    stages = [write_vision(root, outputs), *([write_projector(root)] if cut else [])]
    manifest = read_manifest(root)
    vision = VisionModel((8, 8), (2, 2), TOKENS, 0, 0, image_token_id=9, pruning=pruning)
    axes = {**manifest.axes, "selected": AxisRange(1, 2, TOKENS)}
    changed: Manifest = replace(
        manifest, vision=vision, axes=axes, stages=(*stages, *manifest.stages)
    )
    write_manifest(root, changed)
    return VisionStages(Bundle.open(root), open_backend())


def photo(*reds: float) -> np.ndarray:
    """float32 [3, 8, 8]: a red per quarter, green and blue by place."""
    pixels = np.zeros((3, 8, 8), np.float32)
    for at, red in enumerate(reds):
        row, column = divmod(at, 2)
        pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = np.array(
            [red, 0.1 * at, -0.2 * at], np.float32
        )[:, None, None]
    return pixels


def colours(*reds: float) -> np.ndarray:
    return np.array([[red, 0.1 * at, -0.2 * at] for at, red in enumerate(reds)])


def test_all_features_come_through_where_no_rule_is(own_bundle: Path) -> None:
    found = make(own_bundle, (FEATURES,), None, cut=False).tokens(photo(1, 2, 3, 4))
    np.testing.assert_allclose(found.values, colours(1, 2, 3, 4), atol=1e-6)
    assert (found.places.row.tolist(), found.places.column.tolist()) == (
        [0, 0, 1, 1],
        [0, 1, 0, 1],
    )


def test_a_rule_behind_the_projector_keeps_features_and_their_places(own_bundle: Path) -> None:
    pruning = VisionPruning("max_min_distance", {"keep": 2}, most=2)
    found = make(own_bundle, (FEATURES,), pruning, cut=False).tokens(photo(1, -9, 1, 1))
    # The second is opposite to the others; the first is the first of those.
    np.testing.assert_allclose(found.values, colours(1, -9), atol=1e-6)
    assert (found.places.row.tolist(), found.places.column.tolist()) == ([0, 0], [0, 1])


def test_a_rule_before_the_projector_averages_before_it_projects(own_bundle: Path) -> None:
    pruning = VisionPruning("contextual", {"dominant": 1, "contextual": 1}, most=2)
    stages = make(own_bundle, (PATCHES, SCORES, MEAN_KEYS), pruning, cut=True)
    reds = (1, 2, 7, 4)
    found = stages.tokens(photo(*reds))
    features = colours(*reds)
    merged = np.stack([features[2], features[[0, 1, 3]].mean(axis=0)])
    np.testing.assert_allclose(found.values, np.maximum(merged @ PROJECTION, 0), rtol=1e-5)
    assert found.places.row.tolist() == [1, -1]
    assert found.places.column.tolist() == [0, -1]


def test_scores_that_are_no_numbers_are_refused(own_bundle: Path) -> None:
    pruning = VisionPruning("class_attention", {"keep": 2}, most=2)
    stages = make(own_bundle, (PATCHES, SCORES), pruning, cut=True)
    with pytest.raises(CheckFailedError, match=r"scores\.class are NaN or infinite"):
        stages.tokens(photo(1, float("nan"), 3, 4))


@pytest.mark.parametrize(
    ("pruning", "told"),
    [
        (VisionPruning("best", {}, most=2), "unknown rule 'best'"),
        (VisionPruning("class_attention", {"keep": 0}, most=2), "keep is 0"),
        (VisionPruning("class_attention", {"keep": 2, "why": 1}, most=2), "unknown field 'why'"),
        (VisionPruning("contextual", {"dominant": 1, "contextual": 1}, most=2), r"no keys\.mean"),
        (VisionPruning("max_min_distance", {"keep": 2}, most=2), "no image_features"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_when_the_bundle_is_loaded(
    own_bundle: Path, pruning: VisionPruning, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        make(own_bundle, (PATCHES, SCORES), pruning, cut=True)


def test_a_projector_without_what_it_takes_is_refused(own_bundle: Path) -> None:
    with pytest.raises(InputError, match="gives no patch_features"):
        make(own_bundle, (FEATURES,), None, cut=True)


def test_a_manifest_of_before_such_rules_says_that_there_is_none(hand_made: Path) -> None:
    vision: Any = read_manifest(hand_made).vision
    assert (vision.pruning, vision.most_tokens) == (None, vision.tokens)


def test_what_is_merged_of_several_lies_nowhere() -> None:
    vision = VisionModel((8, 8), (2, 2), 5, 1, 0, image_token_id=9)
    whole = Places.whole(vision)
    assert whole.row.tolist() == [-1, 0, 0, 1, 1]
    left = whole.reduced(Reduction(np.array([0, 3, NOWHERE])))
    assert (left.row.tolist(), left.column.tolist()) == ([-1, 1, -1], [-1, 0, -1])
