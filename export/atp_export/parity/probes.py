"""Looks inside a segment's graph: hidden states between its layers, or one layer alone.

What is read is the graph in the bundle, as it lies there. Its values have no telling names
after inlining, so a layer's ends are found from its weights: what follows `down_proj` and the
residual sum leaves the layer.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Stage, cache_names

SCORER_INPUTS = ("visual_weights", "text_rows", "text_weights")
SCORES = ("scores.self", "scores.cross")


def hidden_name(layer: int) -> str:
    """What a probe calls the hidden states that enter a decoder layer."""
    return f"hidden_states.{layer}"


def with_hidden_states(path: Path, stage: Stage) -> ir.Model:
    """A segment that also returns the hidden states entering each of its layers but the first.

    Raises:
        CheckFailedError: The graph is not a chain of decoder layers.
    """
    model = ir.load(path)
    for layer in range(stage.layers[0] + 1, stage.layers[1]):
        model.graph.outputs.append(_entering(model.graph, stage, layer))
    return model


def single_layer(path: Path, stage: Stage, layer: int) -> ir.Model:
    """One layer of a segment, with the gather if it is the first, the scorer if the last.

    Its inputs and outputs are the segment's, but for `hidden_name(layer)` and
    `hidden_name(layer + 1)` where hidden states come from, or go to, another layer.

    Raises:
        CheckFailedError: The graph is not a chain of decoder layers.
    """
    model = ir.load(path)
    graph, (first, last) = model.graph, stage.layers
    names = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    past_key, past_value, key, value = (names[name] for name in cache_names(layer))
    if layer == first:
        inputs = [names["hidden_states"], names["keep_indices"]]
    else:
        # The length of the past is taken from the first layer's keys.
        inputs = [_entering(graph, stage, layer), names[cache_names(first)[0]]]
    inputs += [names["position_ids"], past_key, past_value]
    if layer + 1 < last:
        outputs = [_entering(graph, stage, layer + 1)]
    else:
        outputs = [names["hidden_states_out"]]
    outputs += [key, value]
    if layer + 1 == last and stage.pruning:
        inputs += [names[name] for name in SCORER_INPUTS]
        outputs += [names[name] for name in SCORES]
    part = ir.convenience.extract(graph, inputs, outputs)
    return ir.Model(part, ir_version=model.ir_version)


def _entering(graph: ir.Graph, stage: Stage, layer: int) -> ir.Value:
    """The hidden states between `layer - 1` and `layer`, named and typed."""
    value = _residual_sum(graph, stage, f"model.language_model.layers.{layer - 1}.mlp.down_proj")
    like = next(output for output in graph.outputs if output.name == "hidden_states_out")
    value.name, value.type, value.shape = hidden_name(layer), like.type, like.shape
    return value


def _residual_sum(graph: ir.Graph, stage: Stage, projection: str) -> ir.Value:
    value = graph.initializers.get(f"{projection}.weight")
    while value is not None:
        consumers = list(value.consumers())
        if len(consumers) != 1:
            break
        (node,) = consumers
        value = node.outputs[0]
        if node.op_type == "Add" and not any(x is None or x.is_initializer() for x in node.inputs):
            return value
    raise CheckFailedError(
        f"{stage.name}: the graph has no residual sum after {projection}",
        why="the layers of the segment cannot be told apart, so they cannot be compared.",
        fix="export the bundle again with atp-export.",
    )
