"""Scoring costs no attention matrix: whichever policy asks, the graph is the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from atp_export.compose import StageComposer
from atp_runtime.tensor_names import SCORES

Composers = Callable[[str, str], StageComposer]
# Nothing else of a tiny model is as large as its numbers of positions.
LENGTHS = {"tokens": 401, "kept": 379, "past": 11, "rows": 3}
LONG = 300


def large_tensors(composer: StageComposer, *, scored: bool) -> set[tuple[int, ...]]:
    """Shapes of all that a segment computes with positions along two axes, and heads."""
    graph = composer.segment("segment", 1, 2, scores=SCORES if scored else ())
    model = ir.serde.serialize_model(graph.model)
    given = {it.name for it in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for node in model.graph.node
        for name in node.output
        if name and name not in given
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    assert len(names) >= len(model.graph.node)
    shapes = {value.shape for value in session.run(names, inputs_of(session))}
    return {shape for shape in shapes if len(shape) > 2 and sum(it >= LONG for it in shape) > 1}


def inputs_of(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Ones, and places that are there."""
    inputs = {}
    for it in session.get_inputs():
        shape = tuple(LENGTHS.get(axis, axis) for axis in it.shape)
        if it.type == "tensor(int64)":
            inputs[it.name] = np.arange(np.prod(shape)).reshape(shape)
        else:
            inputs[it.name] = np.ones(shape, dtype=np.float32)
    return inputs


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_a_scorer_adds_no_tensor_of_heads_by_positions_by_positions(
    composer: Composers, dialect: str
) -> None:
    made = composer(dialect, "fp32")
    assert large_tensors(made, scored=True) == large_tensors(made, scored=False)


def test_native_segments_have_none_at_all(composer: Composers) -> None:
    assert large_tensors(composer("native", "fp32"), scored=True) == set()


def test_the_attention_of_portable_segments_is_such_a_tensor(composer: Composers) -> None:
    """So what is looked for above would be seen."""
    assert large_tensors(composer("portable", "fp32"), scored=True)
