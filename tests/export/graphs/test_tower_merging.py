"""Merges inside a tower against an independent reading, on made-up scores and whole attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from atp_export.graphs.tower_merging import PatchMerge, ReceivedScorer
from atp_export.signatures import Signature
from atp_export.stage_graph import StageBuilder
from atp_export.trace import Argument, trace
from atp_runtime.manifest import TensorSpec

WIDTH, HEADS = 8, 2
FLOAT = torch.float32
Run = Callable[..., list[np.ndarray]]
# Patches, how many are left, positions in front of them.
COUNTS = [(16, 8, 1), (16, 1, 1), (12, 11, 0), (2, 1, 0), (33, 20, 1)]


def graph(
    module: partial[torch.nn.Module],
    inputs: Sequence[tuple[str, tuple[int, ...]]],
    outputs: Sequence[TensorSpec],
) -> Run:
    """A module as it comes into a stage's graph, run by ONNX Runtime."""
    arguments = [Argument(name, ("images", *shape), FLOAT) for name, shape in inputs]
    names = [it.name for it in outputs]
    piece = trace("piece", module, arguments, names, dtype=FLOAT, opset=18)
    given = tuple(TensorSpec(name, "float32", ("images", *shape)) for name, shape in inputs)
    builder = StageBuilder("stage", Signature(given, tuple(outputs)), opset=18)
    values = builder.call(piece, list(builder.inputs.values()), label="it")
    made = builder.finish(dict(zip(names, values, strict=True)))
    proto = ir.serde.serialize_model(made.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto)

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        feeds = dict(zip((name for name, _ in inputs), arrays, strict=True))
        return list(session.run(names, feeds))

    return run


@cache
def merger(patches: int, keep: int, fixed: int) -> Run:
    inputs = [("hidden_states", (fixed + patches, WIDTH)), ("scores", (patches,))]
    left = TensorSpec("left", "float32", ("images", fixed + keep, WIDTH))
    kept = TensorSpec("kept", "int64", ("images", keep))
    return graph(partial(PatchMerge, keep, fixed), inputs, (left, kept))


def reading(states: np.ndarray, scores: np.ndarray, keep: int) -> tuple[np.ndarray, list[int]]:
    """One image's patches after a merge, and where they stood, in float64."""
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    stay, rest = order[: keep - 1], order[keep - 1 :]
    weights = scores[rest].astype(np.float64)
    weights = weights / weights.sum() if weights.any() else np.full(len(rest), 1 / len(rest))
    wide = states.astype(np.float64)
    tokens = {at: wide[at] for at in stay} | {rest[0]: weights @ wide[rest]}
    place = sorted(tokens)
    return np.array([tokens[at] for at in place]), [
        -1 - at if at == rest[0] else at for at in place
    ]


def made_up(patches: int, number: int) -> np.ndarray:
    """Scores of two images: sharp ones, many ties, all equal, or none at all."""
    random = np.random.default_rng(number)
    kinds = [
        random.gamma(0.3, size=(2, patches)),
        random.integers(0, 4, size=(2, patches)) / 8,
        np.full((2, patches), 0.25),
        np.where(random.random((2, patches)) < 0.8, 0.0, random.random((2, patches))),
        np.zeros((2, patches)),
    ]
    return kinds[number % len(kinds)].astype(np.float32)


@pytest.mark.parametrize(("patches", "keep", "fixed"), COUNTS)
def test_what_is_left_of_two_images_is_that_of_an_independent_reading(
    patches: int, keep: int, fixed: int
) -> None:
    run = merger(patches, keep, fixed)
    for number in range(40):
        scores = made_up(patches, number)
        shape = (2, fixed + patches, WIDTH)
        states = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        left, kept = run(states, scores)
        np.testing.assert_array_equal(left[:, :fixed], states[:, :fixed])
        for image in range(2):
            tokens, place = reading(states[image, fixed:], scores[image], keep)
            assert kept[image].tolist() == place
            np.testing.assert_allclose(left[image, fixed:], tokens, rtol=1e-5, atol=1e-6)


def attention(query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Post-softmax attention of one head: float64 [query, key]."""
    scores = query.astype(np.float64) @ keys.astype(np.float64).T / query.shape[1] ** 0.5
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("fixed", [0, 1])
def test_a_patch_is_ranked_by_the_geometric_mean_of_the_attention_it_gets(fixed: int) -> None:
    length = 13
    inputs = [(name, (length, WIDTH)) for name in ("query", "keys")]
    scores = TensorSpec("scores", "float32", ("images", length - fixed))
    run = graph(partial(ReceivedScorer, HEADS, fixed), inputs, (scores,))
    query, keys = 3 * np.random.default_rng(1).normal(size=(2, 2, length, WIDTH))
    (found,) = run(query.astype(np.float32), keys.astype(np.float32))
    for image in range(2):
        heads = np.split(query[image], HEADS, axis=1), np.split(keys[image], HEADS, axis=1)
        means = [np.exp(np.log(attention(q, k)).mean(axis=0)) for q, k in zip(*heads, strict=True)]
        expected = np.mean([mean / mean.sum() for mean in means], axis=0)
        np.testing.assert_allclose(found[image], expected[fixed:], rtol=1e-4)
