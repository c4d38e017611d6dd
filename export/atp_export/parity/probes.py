"""Looks inside a stage's graph: hidden states between its layers, or one layer alone.

What is read is the graph in the bundle, as it lies there. Its values have no telling names
after inlining, so a layer's ends are found from its weights: what follows `down_proj` and the
residual sum leaves a decoder layer, what the first norm takes enters a layer of the tower.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from atp_calibration.quantisation.choice import INT4, INT8
from atp_runtime.errors import CheckFailedError
from atp_runtime.manifest import Stage
from atp_runtime.tensor_names import (
    MERGE_WEIGHTS,
    PLACES,
    ROUTE_WEIGHTS,
    ROWS,
    SCORES,
    WINDOW,
    cache_names,
)

SCORER_INPUTS = ("visual_weights", "text_rows", "text_weights")
_TOWER_NORM = re.compile(
    r"(?P<prefix>model\.vision_tower\.encoder\.layers?\.(?P<layer>\d+)\.)"
    r"(?:layer_norm1|norm1)\.weight"
)
_TOWER_OUTPUTS = ("mlp.fc2", "mlp.down_proj")


def hidden_name(layer: int) -> str:
    """What a probe calls the hidden states that enter a layer, or leave the one before."""
    return f"hidden_states.{layer}"


def query_name(layer: int) -> str:
    """What a probe calls a decoder layer's queries before RoPE."""
    return f"query.{layer}"


def unmerged_name(layer: int) -> str:
    """What a probe calls the hidden states of a tower that leave a layer, before a merge."""
    return f"hidden_states.{layer}.left"


def score_name(layer: int) -> str:
    """What a probe calls the scores by which patches are merged behind a layer of a tower."""
    return f"scores.tower.{layer}"


def with_probes(path: Path, stage: Stage) -> ir.Model:
    """A stage that also returns what happens between and in its layers.

    A segment also returns the queries of its layers, unless visual tokens have only some of them,
    and the hidden states entering all layers but the first; the vision stage the hidden states
    entering and leaving the layers of its tower, and what merges in it go by. The head is returned
    as it is.

    Raises:
        CheckFailedError: The graph is not a chain of layers.
    """
    model = ir.load(path)
    graph, (first, last) = model.graph, stage.layers
    if stage.kind == "segment":
        graph.outputs.extend(_entering(graph, stage, layer) for layer in range(first + 1, last))
        if not stage.tells_visual:
            graph.outputs.extend(_query(graph, stage, layer) for layer in range(first, last))
    elif stage.kind == "vision":
        graph.outputs.extend(_tower_states(graph, stage))
        graph.outputs.extend(_tower_merges(graph, stage))
    return model


def tower_layers(path: Path, stage: Stage, layers: int) -> ir.Model:
    """The first layers of the vision stage's tower, with `hidden_name` outputs only.

    Raises:
        CheckFailedError: The graph is not a chain of layers.
    """
    model = ir.load(path)
    probes = _tower_states(model.graph, stage)[: layers + 1]
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
        entry = ("hidden_states", "keep_indices", MERGE_WEIGHTS, ROUTE_WEIGHTS)
        inputs = [names[name] for name in entry if name in names]
    else:
        inputs = [_entering(graph, stage, layer)]
        # How long the past is made is taken from the first layer's keys.
        inputs.append(names[cache_names(first)[0]])
    inputs += [names["position_ids"], names["past_length"], past_key, past_value]
    ends = layer + 1 == last
    outputs = [names["hidden_states_out"] if ends else _entering(graph, stage, layer + 1)]
    outputs += [key, value]
    if stage.tells_visual:
        inputs += [names[name] for name in (*ROWS, *WINDOW, PLACES) if name in names]
    else:
        outputs.append(_query(graph, stage, layer))
    if ends:
        inputs += [names[name] for name in SCORER_INPUTS if SCORES[0] in stage.scores]
        outputs += [names[name] for name in stage.scores]
    part = ir.convenience.extract(graph, inputs, outputs)
    return ir.Model(part, ir_version=model.ir_version)


def _entering(graph: ir.Graph, stage: Stage, layer: int) -> ir.Value:
    """The hidden states between `layer - 1` and `layer`."""
    value = _residual_sum(graph, stage, f"model.language_model.layers.{layer - 1}.mlp.down_proj")
    return _as_output(value, hidden_name(layer), graph)


def _query(graph: ir.Graph, stage: Stage, layer: int) -> ir.Value:
    value = _projected(graph, stage, f"model.language_model.layers.{layer}.self_attn.q_proj")
    return _as_output(value, query_name(layer), graph)


def _tower_states(graph: ir.Graph, stage: Stage) -> list[ir.Value]:
    """The hidden states that enter the tower's layers, in order, and that leave the last."""
    entering, prefixes = _tower_norms(graph)
    if not entering:
        return []  # features are taken before the first layer
    states = [value for _, value in sorted(entering.items())]
    states.append(_leaving(graph, stage, prefixes[max(prefixes)]))
    return [_as_output(value, hidden_name(layer), graph) for layer, value in enumerate(states)]


def _tower_merges(graph: ir.Graph, stage: Stage) -> list[ir.Value]:
    """Behind each layer with a merge the hidden states that left it, and the scores."""
    _, prefixes = _tower_norms(graph)
    sorts = {node.name: node.inputs[0] for node in graph if node.op_type == "TopK"}
    found = []
    for layer, prefix in sorted(prefixes.items()):
        # What is sorted first are the scores.
        scores = sorts.get(f"{prefix.removeprefix('model.')}merge/TopK")
        if scores is not None:
            found.append(_as_output(_leaving(graph, stage, prefix), unmerged_name(layer), graph))
            scores.name, scores.shape = score_name(layer), None
            found.append(scores)
    return found


def _tower_norms(graph: ir.Graph) -> tuple[dict[int, ir.Value], dict[int, str]]:
    """By layer, what its first norm takes and what its weights' names begin with."""
    entering: dict[int, ir.Value] = {}
    prefixes: dict[int, str] = {}
    for name, weight in graph.initializers.items():
        match = _TOWER_NORM.fullmatch(name)
        norms = [node for node in weight.consumers() if node.op_type == "LayerNormalization"]
        if match and norms and norms[0].inputs[0] is not None:
            entering[int(match["layer"])] = norms[0].inputs[0]
            prefixes[int(match["layer"])] = match["prefix"]
    return entering, prefixes


def _leaving(graph: ir.Graph, stage: Stage, prefix: str) -> ir.Value:
    """What leaves a layer of the tower."""
    names = [prefix + output for output in _TOWER_OUTPUTS]
    projection = next((name for name in names if _weight(graph, name) is not None), names[0])
    return _residual_sum(graph, stage, projection)


def _residual_sum(graph: ir.Graph, stage: Stage, projection: str) -> ir.Value:
    """What a projection is added to, and the projection: the first sum of two activations."""
    value = _projected(graph, stage, projection)
    while len(consumers := list(value.consumers())) == 1:
        (node,) = consumers
        value = node.outputs[0]
        if node.op_type == "Add" and not _takes_weight(node):
            return value
    raise _unreadable(stage, projection)


def _projected(graph: ir.Graph, stage: Stage, projection: str) -> ir.Value:
    """What a projection gives, what zero points shift it by and its bias added."""
    weight = _weight(graph, projection)
    consumers = [] if weight is None else list(weight.consumers())
    if len(consumers) == 1 and consumers[0].op_type == "DequantizeLinear":
        consumers = list(consumers[0].outputs[0].consumers())
    if len(consumers) != 1:
        raise _unreadable(stage, projection)
    value: ir.Value = consumers[0].outputs[0]
    following = list(value.consumers())
    if len(following) == 1 and following[0].name == f"{projection}.weight/Add":
        value = following[0].outputs[0]
        following = list(value.consumers())
    biased = len(following) == 1 and following[0].op_type == "Add" and _takes_weight(following[0])
    return following[0].outputs[0] if biased else value


def _weight(graph: ir.Graph, projection: str) -> ir.Value | None:
    """A projection's weight, or the integers that stand for it."""
    name = f"{projection}.weight"
    names = (name, f"{name}.{INT4}", f"{name}.{INT8}")
    return next((graph.initializers[it] for it in names if it in graph.initializers), None)


def _takes_weight(node: ir.Node) -> bool:
    return any(value is None or value.is_initializer() for value in node.inputs)


def _as_output(value: ir.Value, name: str, graph: ir.Graph) -> ir.Value:
    """Names and types a value, of unknown shape; its dtype is that of the stage's outputs."""
    value.name, value.type, value.shape = name, graph.outputs[0].type, None
    return value


def _unreadable(stage: Stage, projection: str) -> CheckFailedError:
    return CheckFailedError(
        f"{stage.name}: the graph does not use {projection} as a layer does",
        why="its layers cannot be told apart, so they cannot be compared.",
        fix="export the bundle again with atp-export.",
    )
