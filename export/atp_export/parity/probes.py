"""Looks inside a stage's graph: hidden states between its layers, or one layer alone.

What is read is the graph in the bundle, as it lies there. Its values have no telling names
after inlining, so a layer's ends are found from its weights: what follows `down_proj` and the
residual sum leaves a decoder layer, what the first norm takes enters a layer of the tower.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Stage, cache_names

SCORER_INPUTS = ("visual_weights", "text_rows", "text_weights")
SCORES = ("scores.self", "scores.cross")
_TOWER_NORM = re.compile(
    r"model\.vision_tower\.encoder\.layers?\.(?P<layer>\d+)\.(?:layer_norm1|norm1)\.weight"
)


def hidden_name(layer: int) -> str:
    """What a probe calls the hidden states that enter a layer."""
    return f"hidden_states.{layer}"


def with_hidden_states(path: Path, stage: Stage) -> ir.Model:
    """A stage that also returns the hidden states entering its layers.

    For a segment those of all layers but the first, for the vision stage those of all layers
    of the tower that it has. The head is returned as it is.

    Raises:
        CheckFailedError: The graph is not a chain of layers.
    """
    model = ir.load(path)
    if stage.kind == "segment":
        layers = range(stage.layers[0] + 1, stage.layers[1])
        probes = [_entering(model.graph, stage, layer) for layer in layers]
    else:
        probes = _entering_tower(model.graph)
    model.graph.outputs.extend(probes)
    return model


def tower_layers(path: Path, layers: int) -> ir.Model:
    """The vision stage up to where its tower's layer number `layers` begins.

    Its outputs are `hidden_name(0)` to `hidden_name(layers)`.
    """
    model = ir.load(path)
    probes = _entering_tower(model.graph)[: layers + 1]
    part = ir.convenience.extract(model.graph, list(model.graph.inputs), probes)
    return ir.Model(part, ir_version=model.ir_version)


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
        inputs = [_entering(graph, stage, layer)]
        # The length of the past is taken from the first layer's keys.
        inputs.append(names[cache_names(first)[0]])
    inputs += [names["position_ids"], past_key, past_value]
    ends = layer + 1 == last
    outputs = [names["hidden_states_out"] if ends else _entering(graph, stage, layer + 1)]
    outputs += [key, value]
    if ends and stage.pruning:
        inputs += [names[name] for name in SCORER_INPUTS]
        outputs += [names[name] for name in SCORES]
    part = ir.convenience.extract(graph, inputs, outputs)
    return ir.Model(part, ir_version=model.ir_version)


def _entering(graph: ir.Graph, stage: Stage, layer: int) -> ir.Value:
    """The hidden states between `layer - 1` and `layer`, named and typed."""
    value = _residual_sum(graph, stage, f"model.language_model.layers.{layer - 1}.mlp.down_proj")
    like = next(output for output in graph.outputs if output.name == "hidden_states_out")
    return _named(value, hidden_name(layer), like)


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


def _entering_tower(graph: ir.Graph) -> list[ir.Value]:
    """The hidden states that enter the tower's layers, in order."""
    like = next(output for output in graph.outputs if output.name == "image_features")
    found = {}
    for name, weight in graph.initializers.items():
        match = _TOWER_NORM.fullmatch(name)
        norms = [node for node in weight.consumers() if node.op_type == "LayerNormalization"]
        if match and norms and norms[0].inputs[0] is not None:
            found[int(match["layer"])] = norms[0].inputs[0]
    return [
        _named(value, hidden_name(layer), like, ranked=False)
        for layer, value in sorted(found.items())
    ]


def _named(value: ir.Value, name: str, like: ir.Value, *, ranked: bool = True) -> ir.Value:
    value.name, value.type = name, like.type
    value.shape = like.shape if ranked else None
    return value
