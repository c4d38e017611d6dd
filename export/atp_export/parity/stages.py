"""Every stage by itself, fed with the reference's own inputs: errors show where they arise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from atp_export.parity.measures import Array, Measure, Tolerance, compare, in_sequence
from atp_export.parity.probes import (
    hidden_name,
    query_name,
    score_name,
    unmerged_name,
    with_probes,
)
from atp_export.parity.pruned_reference import (
    PrunedReference,
    entry_inputs,
    route_inputs,
    score_arrays,
)
from atp_export.parity.report import Check
from atp_export.parity.samples import count_images
from atp_export.parity.sessions import Arrays, GraphSession
from atp_export.parity.tower_merging import merged_in, said, told_to
from atp_models.reference import PrunedStep
from atp_models.reference_layers import LayerStep, Survivors, Tokens
from atp_models.reference_vision import TowerMerged, TowerMerging, VisionStep
from atp_runtime.bundle import Bundle
from atp_runtime.manifest import Manifest, Stage
from atp_runtime.selection import VisualTokens
from atp_runtime.structure import MASKED
from atp_runtime.structure_rows import Blocks, StructureRows
from atp_runtime.tensor_names import (
    CLASS_ATTENTION,
    CLASS_SIMILARITY,
    IMAGE_FEATURES,
    MEAN_KEYS,
    PATCH_FEATURES,
    PLACES,
    ROWS,
    TEXT_MEAN,
    TOWER_KEPT,
    WINDOW,
    cache_names,
)
from atp_runtime.workspace import Scorer

See = Callable[[torch.Tensor, Sequence[TowerMerged], torch.Tensor | None], VisionStep]
"""The reference's tower on images [images, 3, height, width], with what is merged in it and what a
compressor behind it is told."""

SCOPE = "stage"
MODULES = "Transformers' modules"


def open_stage(bundle: Bundle, stage: Stage) -> GraphSession:
    """A stage that also returns hidden states between its layers."""
    path = bundle.path(stage.graph)
    return GraphSession(with_probes(path, stage), path.parent)


def check_vision(
    bundle: Bundle, pixels: Array, see: See, tolerances: Mapping[str, Tolerance]
) -> tuple[VisionStep, tuple[Check, ...]]:
    """The vision stage on images [images, 3, height, width]; and the projector, if it is one.

    Also returns what the reference sees.
    """
    manifest = bundle.manifest
    stage, projector = manifest.stage("vision"), manifest.projector
    inputs = {"pixel_values": pixels, TEXT_MEAN: said(manifest.text.hidden)[np.newaxis]}
    outputs = open_stage(bundle, stage).run(inputs)
    merged, told = merged_in(manifest, outputs), told_to(manifest)
    expected = see(torch.from_numpy(pixels), merged, told)
    measures = list(tower_measures(outputs, expected.states, tolerances, expected.merges))
    bound, detail = tolerances[SCOPE], count_images(len(pixels))
    for spec in stage.outputs:
        if spec.name == TOWER_KEPT:
            continue  # taken over
        wanted = vision_output(spec.name, expected, bundle.manifest).numpy()
        measures.append(compare(spec.name, "prefill", outputs[spec.name], wanted, bound))
    vision = Check.of(stage.name, SCOPE, MODULES, detail, measures)
    if projector is None:
        return expected, (vision,)
    session, images = open_stage(bundle, projector), expected.selected.numpy()
    found = [session.run({PATCH_FEATURES: it[np.newaxis]})[IMAGE_FEATURES] for it in images]
    features = expected.features.numpy()
    measure = compare(IMAGE_FEATURES, "prefill", np.concatenate(found), features, bound)
    return expected, (vision, Check.of(projector.name, SCOPE, MODULES, detail, [measure]))


def vision_output(name: str, expected: VisionStep, manifest: Manifest) -> torch.Tensor:
    """The reference's reading of an output of the vision stage: [images, ...]."""
    pruning = manifest.vision.pruning
    if name == IMAGE_FEATURES:
        return expected.features
    if name == PATCH_FEATURES:
        return expected.selected
    if name == CLASS_SIMILARITY:
        first, patches = expected.chosen[:, :1], expected.chosen[:, 1:]
        return torch.nn.functional.cosine_similarity(first, patches, dim=-1)
    if pruning is None or pruning.layer is None:
        raise ValueError(f"nothing to compare {name} with")
    layer = expected.layers[pruning.layer]
    if name == CLASS_ATTENTION:
        return layer.first_row[:, 1:]
    if name == MEAN_KEYS:
        return torch.unflatten(layer.keys[:, 1:], 2, (layer.heads, -1)).mean(2)
    return layer.keys[:, 1:]


def tower_measures(
    outputs: Arrays,
    states: Sequence[torch.Tensor],
    tolerances: Mapping[str, Tolerance],
    merges: Sequence[TowerMerging] = (),
) -> Iterator[Measure]:
    """Hidden states entering each layer of the tower that the graph has, and their updates.

    Where patches are merged behind a layer, also what left it and the scores they are merged by.
    """
    unmerged = {merge.layer: merge.left for merge in merges}
    for merge in merges:
        name, scores = score_name(merge.layer), merge.scores.numpy()
        yield compare(name, "prefill", outputs[name], scores, tolerances[SCOPE])
    layers = sum(hidden_name(layer) in outputs for layer in range(len(states)))
    for layer in range(layers):
        name, state = hidden_name(layer), states[layer].numpy()
        yield compare(name, "prefill", outputs[name], state, tolerances[SCOPE])
        if layer + 1 < layers:
            after = outputs[unmerged_name(layer) if layer in unmerged else hidden_name(layer + 1)]
            left = unmerged.get(layer, states[layer + 1]).numpy()
            yield update_measure(layer, outputs[name], after, state, left, tolerances)


def check_segment(
    bundle: Bundle, stage: Stage, run: PrunedReference, tolerances: Mapping[str, Tolerance]
) -> Check:
    """A segment on the prompt and on each decode step, the past being the reference's."""
    session = open_stage(bundle, stage)
    outputs = [
        session.run(_segment_inputs(stage, bundle.manifest, run, number))
        for number in range(len(run.steps))
    ]
    expected = [_expected(stage, step) for step in run.steps]
    measures: list[Measure] = []
    for moment in dict.fromkeys(run.moments):
        at = [number for number, m in enumerate(run.moments) if m == moment]
        for name in expected[at[0]]:
            a, b = (in_sequence([side[n][name] for n in at]) for side in (outputs, expected))
            measures.append(compare(name, moment, a, b, tolerances[SCOPE]))
    measures += _updates(stage, run.steps[0], outputs[0], tolerances)
    return Check.of(stage.name, SCOPE, MODULES, layer_names(stage), measures)


def layer_names(stage: Stage, sampled: Sequence[int] = ()) -> str:
    """Says which layers were compared, and of which if those are a sample."""
    first, last = stage.layers[0], stage.layers[1] - 1
    if sampled and len(sampled) <= last - first:
        return f"layers {', '.join(map(str, sampled))} of {first} to {last}"
    return f"layers {first} to {last}" if last > first else f"layer {first}"


def check_head(
    bundle: Bundle,
    states: Sequence[torch.Tensor],
    expected: torch.Tensor,
    tolerances: Mapping[str, Tolerance],
) -> Check:
    """Final norm and LM head.

    Args:
        bundle: The bundle.
        states: Hidden states [1, tokens, hidden] that leave the last layer, one per run.
        expected: Logits [runs, vocabulary].
        tolerances: Of the bundle's precision.
    """
    sessions = [open_stage(bundle, stage) for stage in bundle.manifest.heads]
    found = [
        np.concatenate([it.run({"hidden_states": state.numpy()})["logits"] for it in sessions], 1)
        for state in states
    ]
    logits = in_sequence(list(expected.unsqueeze(1).numpy()))
    measure = compare("logits", "all", in_sequence(found), logits, tolerances[SCOPE])
    return Check.of("head", SCOPE, MODULES, f"{len(states)} runs", [measure])


def update_measure(
    layer: int,
    before: Array,
    after: Array,
    expected_before: Array,
    expected_after: Array,
    tolerances: Mapping[str, Tolerance],
) -> Measure:
    """What a layer added to the residual stream, where a lost scale is not diluted by it.

    Rows are scaled by the stream's norm: where it is huge, its rounding hides the update.
    """
    found = after.astype(np.float64) - before
    expected = expected_after.astype(np.float64) - expected_before
    name = f"update of layer {layer}"
    return compare(name, "prefill", found, expected, tolerances["update"], scale=expected_after)


def layer_inputs(layer: int, step: LayerStep, past: Sequence[LayerStep]) -> dict[str, Array]:
    """What one layer of a segment takes besides hidden states.

    Args:
        layer: Its number.
        step: What the reference did there.
        past: The same layer's earlier chunks.
    """
    keys, values, _, _ = cache_names(layer)
    inputs = {
        "position_ids": step.tokens.positions.unsqueeze(0).numpy(),
        "past_length": np.array([sum(step.key.shape[1] for step in past)]),
    }
    if step.scores is not None:
        inputs |= scorer_inputs(step.tokens.visual.numpy(), step.scores.asked.numpy())
    if past:
        inputs[keys] = torch.cat([step.key for step in past], dim=1).numpy()
        inputs[values] = torch.cat([step.value for step in past], dim=1).numpy()
    return inputs


def row_inputs(tokens: Tokens, manifest: Manifest) -> dict[str, Array]:
    """What a segment is told of its rows where visual tokens are spared work."""
    structure = manifest.structure
    if structure is None:
        return {}
    index = np.flatnonzero(tokens.visual.numpy())
    places = np.full((len(tokens.visual), 3), -1)
    if tokens.places is not None:
        places = tokens.places.numpy()
    if structure.mode == MASKED:
        return {PLACES: places}
    blocks = None if structure.window is None else Blocks.of(structure.window, manifest.vision.grid)
    rows = StructureRows.of(VisualTokens(index, *places[index].T), len(places), blocks)
    return {name: getattr(rows, name) for name in ROWS + WINDOW}


def scorer_inputs(visual: Array, asked: Array) -> dict[str, Array]:
    """What a scorer takes for a sequence.

    Args:
        visual: bool [kept].
        asked: bool [kept], whose attention it averages.
    """
    index = np.flatnonzero(visual)
    none = np.zeros_like(index)
    scorer = Scorer.for_sequence(VisualTokens(index, none, none, none), len(visual))
    scorer = scorer.asking(np.flatnonzero(asked))
    return {
        "visual_weights": scorer.visual_weights,
        "text_rows": scorer.text_rows,
        "text_weights": scorer.text_weights,
    }


def _segment_inputs(
    stage: Stage, manifest: Manifest, run: PrunedReference, number: int
) -> dict[str, Array]:
    first, last = stage.layers
    step, past = run.steps[number], run.steps[:number]
    entering = step.layers[first]
    hidden = step.layers[first - 1].left if first else entering.entered
    tokens = hidden.shape[1]
    survivors = run.keep.get(first) if number == 0 else None
    survivors = survivors or Survivors.unmerged(torch.arange(tokens), tokens)
    inputs: dict[str, Array] = {"hidden_states": hidden.numpy(), **entry_inputs(survivors)}
    if stage.tells_visual:
        inputs |= row_inputs(entering.tokens, manifest)
    scores = step.layers[first - 1].router
    if scores is not None:
        inputs |= route_inputs(entering.tokens, scores, survivors)
    for layer in range(first, last):
        inputs |= layer_inputs(layer, step.layers[layer], [s.layers[layer] for s in past])
    if number == 0:
        inputs |= empty_past(stage, entering.key)
    return inputs


def empty_past(stage: Stage, like: torch.Tensor) -> dict[str, Array]:
    """Caches without positions for all layers of a segment.

    Args:
        stage: The segment.
        like: Any key [1, kept, kv_heads, head_dim].
    """
    empty = np.zeros((1, 0, *like.shape[2:]), dtype=np.float32)
    return {name: empty for layer in range(*stage.layers) for name in cache_names(layer)[:2]}


def layer_outputs(stage: Stage, layer: int, step: LayerStep) -> dict[str, Array]:
    """What a layer gives, by the names of the probed segment's outputs."""
    _, _, key, value = cache_names(layer)
    found: dict[str, Array] = {
        key: step.key.numpy(),
        value: step.value.numpy(),
        leaving(stage, layer): step.left.numpy(),
    }
    if not stage.tells_visual:  # there, no row has them all
        found[query_name(layer)] = step.query.numpy()
    if bool(step.tokens.visual.any()):
        found |= score_arrays(step, stage.scores)
    return found


def leaving(stage: Stage, layer: int) -> str:
    """The output with the hidden states that leave a layer."""
    return "hidden_states_out" if layer + 1 == stage.layers[1] else hidden_name(layer + 1)


def _expected(stage: Stage, step: PrunedStep) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for layer in range(*stage.layers):
        found |= layer_outputs(stage, layer, step.layers[layer])
    return found


def _updates(
    stage: Stage, step: PrunedStep, outputs: Arrays, tolerances: Mapping[str, Tolerance]
) -> Iterator[Measure]:
    first = stage.layers[0]
    for layer in range(*stage.layers):
        done = step.layers[layer]
        entered, left = done.entered.numpy(), done.left.numpy()
        before = entered if layer == first else outputs[hidden_name(layer)]
        after = outputs[leaving(stage, layer)]
        yield update_measure(layer, before, after, entered, left, tolerances)
